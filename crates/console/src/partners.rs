//! The partners whose cohorts can be chosen.

use muster_client::Refusal;
use muster_proto::{ingest::v1::ListCohortsRequest, keys::v1::ListPartnersRequest};
use tonic::Code;

use crate::{problem::Problem, session::Visitor};

/// Most items on a page of a list.
const PAGE: i32 = 1_000;

/// A partner to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partner {
    pub(crate) slug: String,
    pub(crate) name: String,
}

/// The partners, by name. To a token that may not see integrations, those with cohorts among the
/// newest.
pub(crate) async fn all(visitor: &Visitor) -> Result<Vec<Partner>, Problem> {
    let request = ListPartnersRequest {
        page_size: PAGE,
        ..Default::default()
    };
    let mut client = visitor.connection().integrations();
    let listed = client.list_partners(request).await;
    let mut partners: Vec<Partner> = match listed.map_err(Refusal::from) {
        Ok(listed) => listed
            .into_inner()
            .partners
            .into_iter()
            .map(|it| Partner {
                slug: it.partner,
                name: it.display_name,
            })
            .collect(),
        Err(refusal) if refusal.code == Code::PermissionDenied => of_cohorts(visitor).await?,
        Err(refusal) => return Err(refusal.into()),
    };
    partners.sort_by_key(|it| (it.name.to_lowercase(), it.slug.clone()));
    partners.dedup();
    Ok(partners)
}

async fn of_cohorts(visitor: &Visitor) -> Result<Vec<Partner>, Problem> {
    let request = ListCohortsRequest {
        workspace: visitor.workspace.clone(),
        page_size: PAGE,
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_cohorts(request).await?;
    let cohorts = listed.into_inner().cohorts.into_iter();
    let partners = cohorts.map(|it| Partner {
        name: it.partner.clone(),
        slug: it.partner,
    });
    Ok(partners.collect())
}
