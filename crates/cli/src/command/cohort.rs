//! `muster cohort`, and how every command finds a cohort by id or by name.

use muster_proto::ingest::v1 as pb;
use tonic::Code;

use crate::{
    error::{CliError, Result, required},
    page::Limit,
    session::{Session, request_id},
};

/// The verbs of `muster cohort`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Cohort {
    /// List cohorts with their size at the last import
    List {
        /// Only those whose current or a former name, or whose id, contains this
        #[arg(value_name = "TEXT", default_value = "", hide_default_value = true)]
        text: String,
        /// Only this partner's
        #[arg(long, default_value = "", hide_default_value = true)]
        partner: String,
        /// List archived cohorts, too
        #[arg(long)]
        archived: bool,
        /// How to order them
        #[arg(long, value_enum, default_value_t)]
        order: Order,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show one cohort with its exact size
    Show(CohortName),
    /// List the versions of a cohort, newest first: what each import made of it
    Versions {
        #[command(flatten)]
        cohort: CohortName,
        #[command(flatten)]
        limit: Limit,
    },
    /// Give a cohort another name; segments that use it are not affected
    Rename {
        #[command(flatten)]
        cohort: CohortName,
        /// The new name
        #[arg(value_name = "NEW_NAME")]
        name: String,
    },
    /// Archive a cohort: it takes no more imports and is hidden from lists
    Archive(CohortName),
}

/// How cohorts are ordered.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(crate) enum Order {
    /// Last created first
    #[default]
    Newest,
    /// By name
    Name,
    /// Most members first
    Largest,
    /// Last imported first
    LastImport,
    /// Longest without an import first
    Stalest,
}

impl From<Order> for pb::CohortOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::Newest => Self::Newest,
            Order::Name => Self::Name,
            Order::Largest => Self::Largest,
            Order::LastImport => Self::LastImport,
            Order::Stalest => Self::Stalest,
        }
    }
}

/// Names a cohort.
#[derive(Debug, clap::Args)]
pub(crate) struct CohortName {
    /// The partner's id of the cohort, or its current name
    #[arg(value_name = "COHORT")]
    pub(crate) cohort: String,
    /// Slug of the partner; not needed if only one partner has such a cohort
    #[arg(long)]
    pub(crate) partner: Option<String>,
}

impl Cohort {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List {
                text,
                partner,
                archived,
                order,
                limit,
            } => {
                let wanted = pb::ListCohortsRequest {
                    partner,
                    name_contains: text,
                    include_archived: archived,
                    order: pb::CohortOrder::from(order).into(),
                    ..Default::default()
                };
                session.output.list(&list(session, &wanted, limit).await?)
            }
            Self::Versions { cohort, limit } => versions(session, &cohort, limit).await,
            Self::Show(name) => {
                let found = find(session, &name).await?;
                // A cohort out of a list comes without its size.
                let cohort = match found.member_count {
                    Some(_) => found,
                    None => get(session, &found.partner, &found.cohort_id).await?,
                };
                session.output.show(&cohort)
            }
            Self::Rename { cohort, name } => rename(session, &cohort, name).await,
            Self::Archive(name) => archive(session, &name).await,
        }
    }
}

async fn rename(session: &Session, name: &CohortName, new_name: String) -> Result<()> {
    let cohort = find(session, name).await?;
    let request = pb::UpsertCohortRequest {
        workspace: session.workspace()?,
        partner: cohort.partner,
        cohort_id: cohort.cohort_id,
        name: new_name,
        source_time: None,
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["name".to_owned()],
        }),
        etag: cohort.etag,
        request_id: request_id(),
    };
    let mut client = session.connection.ingest();
    let renamed = session
        .call(async || client.upsert_cohort(request.clone()).await)
        .await?;
    session.output.show(&required(renamed.cohort)?)
}

async fn archive(session: &Session, name: &CohortName) -> Result<()> {
    let cohort = find(session, name).await?;
    let request = pb::ArchiveCohortRequest {
        workspace: session.workspace()?,
        partner: cohort.partner,
        cohort_id: cohort.cohort_id,
        etag: cohort.etag,
        request_id: request_id(),
    };
    let mut client = session.connection.ingest();
    let archived = session
        .call(async || client.archive_cohort(request.clone()).await)
        .await?;
    session.output.show(&required(archived.cohort)?)
}

async fn get(session: &Session, partner: &str, cohort_id: &str) -> Result<pb::Cohort> {
    let request = pb::GetCohortRequest {
        workspace: session.workspace()?,
        partner: partner.to_owned(),
        cohort_id: cohort_id.to_owned(),
    };
    let mut client = session.connection.ingest();
    let found = session
        .call(async || client.get_cohort(request.clone()).await)
        .await?;
    required(found.cohort)
}

async fn versions(session: &Session, name: &CohortName, limit: Limit) -> Result<()> {
    let cohort = find(session, name).await?;
    let workspace = session.workspace()?;
    let mut client = session.connection.ingest();
    let versions = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListCohortVersionsRequest {
                workspace: workspace.clone(),
                partner: cohort.partner.clone(),
                cohort_id: cohort.cohort_id.clone(),
                page_size,
                page_token,
            };
            let page = session
                .call(async || client.list_cohort_versions(request.clone()).await)
                .await?;
            Ok((page.versions, page.next_page_token))
        })
        .await?;
    session.output.list(&versions)
}

/// The cohorts that `wanted` selects, in this workspace.
async fn list(
    session: &Session,
    wanted: &pb::ListCohortsRequest,
    limit: Limit,
) -> Result<Vec<pb::Cohort>> {
    let workspace = session.workspace()?;
    let mut client = session.connection.ingest();
    limit
        .collect(async |page_size, page_token| {
            let request = pb::ListCohortsRequest {
                workspace: workspace.clone(),
                page_size,
                page_token,
                ..wanted.clone()
            };
            let page = session
                .call(async || client.list_cohorts(request.clone()).await)
                .await?;
            Ok((page.cohorts, page.next_page_token))
        })
        .await
}

/// Finds a cohort by the partner's id, else by its current name.
///
/// # Errors
/// If there is none, or several; then it names them.
pub(crate) async fn find(session: &Session, name: &CohortName) -> Result<pb::Cohort> {
    if let Some(partner) = &name.partner {
        match get(session, partner, &name.cohort).await {
            Err(CliError::Refused { refusal, .. }) if refusal.code == Code::NotFound => {}
            other => return other,
        }
    }
    let wanted = pb::ListCohortsRequest {
        partner: name.partner.clone().unwrap_or_default(),
        name_contains: name.cohort.clone(),
        include_archived: true,
        ..Default::default()
    };
    let candidates = list(session, &wanted, Limit::NONE).await?;
    choose(&name.cohort, candidates)
}

/// The one cohort that is meant: an id goes before a name, a live cohort before an archived one.
fn choose(text: &str, candidates: Vec<pb::Cohort>) -> Result<pb::Cohort> {
    let (by_id, others): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|c| c.cohort_id == text);
    let by_name = || others.into_iter().filter(|c| c.name == text).collect();
    let matching: Vec<_> = if by_id.is_empty() { by_name() } else { by_id };
    let (archived, live): (Vec<_>, Vec<_>) = matching.into_iter().partition(|c| c.archived);
    let mut matching = if live.is_empty() { archived } else { live };
    match (matching.pop(), matching.as_slice()) {
        (Some(only), []) => Ok(only),
        (None, _) => Err(CliError::Failed(format!(
            "no cohort has the id or the current name {text:?}; `muster cohort list TEXT` searches \
             former names, too"
        ))),
        (Some(last), _) => {
            matching.push(last);
            let mut message = format!("{text:?} is ambiguous; give --partner and the id of one of");
            for cohort in &matching {
                message.push_str(&format!(
                    "\n  --partner {} {}",
                    cohort.partner, cohort.cohort_id
                ));
            }
            Err(CliError::Failed(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cohort(partner: &str, cohort_id: &str, name: &str, archived: bool) -> pb::Cohort {
        pb::Cohort {
            partner: partner.to_owned(),
            cohort_id: cohort_id.to_owned(),
            name: name.to_owned(),
            archived,
            ..Default::default()
        }
    }

    #[test]
    fn an_id_goes_before_a_name_and_a_live_cohort_before_an_archived_one() {
        let candidates = vec![
            cohort("p", "c1", "spring", false),
            cohort("p", "spring", "other", false),
            cohort("p", "c2", "autumn", true),
            cohort("p", "c3", "autumn", false),
            cohort("p", "c4", "springtime", false),
        ];
        let choose = |text| choose(text, candidates.clone()).unwrap().cohort_id;
        assert_eq!(choose("spring"), "spring");
        assert_eq!(choose("autumn"), "c3");
        assert_eq!(choose("springtime"), "c4");
    }

    #[test]
    fn several_cohorts_of_one_name_are_listed_not_guessed() {
        let candidates = vec![
            cohort("tinyclues", "c1", "spring", false),
            cohort("amplitude", "c9", "spring", false),
        ];
        let message = choose("spring", candidates).unwrap_err().to_string();
        assert!(message.contains("--partner tinyclues c1"), "{message}");
        assert!(message.contains("--partner amplitude c9"), "{message}");
        assert!(choose("spring", Vec::new()).is_err());
    }
}
