//! Who did something, as people know them.

use std::collections::HashMap;

use muster_client::Refusal;
use muster_proto::keys::v1::{ListKeysRequest, ListServiceTokensRequest};
use tonic::Code;

use crate::{problem::Problem, session::Visitor};

/// Most credentials whose labels are looked up; others are called by their id.
const KNOWN: i32 = 1_000;

/// The labels of credentials, by id; none for who may not see them.
pub(crate) struct Actors(HashMap<String, String>);

impl Actors {
    /// The service tokens that the visitor may see, and the data import keys of the workspace.
    pub(crate) async fn of(visitor: &Visitor) -> Result<Self, Problem> {
        let tokens = ListServiceTokensRequest {
            page_size: KNOWN,
            ..Default::default()
        };
        let keys = ListKeysRequest {
            workspace: visitor.workspace.clone(),
            page_size: KNOWN,
            ..Default::default()
        };
        let (mut integrations, mut importers) = (
            visitor.connection().integrations(),
            visitor.connection().keys(),
        );
        let listed = futures::try_join!(
            integrations.list_service_tokens(tokens),
            importers.list_keys(keys)
        );
        match listed.map_err(Refusal::from) {
            Ok((tokens, keys)) => {
                let tokens = tokens.into_inner().tokens.into_iter();
                let tokens = tokens.map(|it| (it.token_id, it.label));
                let keys = keys.into_inner().keys.into_iter();
                let keys = keys.map(|it| (it.key_id, either(it.label, it.hint)));
                Ok(Self(tokens.chain(keys).collect()))
            }
            Err(refusal) if refusal.code == Code::PermissionDenied => Ok(Self(HashMap::new())),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// What to call one, such as `service_token:0195…`.
    pub(crate) fn name(&self, actor: &str) -> String {
        let label = actor.split_once(':').and_then(|(_, id)| self.0.get(id));
        label.cloned().unwrap_or_else(|| actor.to_owned())
    }
}

fn either(label: String, hint: String) -> String {
    if label.is_empty() { hint } else { label }
}
