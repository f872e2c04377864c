//! What a caller can get wrong: credentials, fields, bytes.

use http::uri::PathAndQuery;
use muster_client::Connection;
use muster_proto::keys::v1 as pb;
use tonic::{Code, Request, Status, client::Grpc, metadata::MetadataValue, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::support::{Muster, fields, new_key, new_token, reason, rotate_key};

/// A message whose first field holds any bytes at all.
#[derive(Clone, PartialEq, prost::Message)]
struct Raw {
    #[prost(bytes = "vec", tag = "1")]
    field: Vec<u8>,
}

async fn raw(muster: &Muster, rpc: &'static str, authorization: &str, field: Vec<u8>) -> Status {
    let channel = Endpoint::from_shared(muster.endpoint.clone()).unwrap();
    let mut client = Grpc::new(channel.connect().await.unwrap());
    client.ready().await.unwrap();
    let mut request = Request::new(Raw { field });
    let value = MetadataValue::try_from(authorization).unwrap();
    request.metadata_mut().insert("authorization", value);
    let codec: ProstCodec<Raw, pb::GetKeyResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static(rpc);
    client.unary(request, path, codec).await.unwrap_err()
}

const GET_KEY: &str = "/muster.keys.v1.KeyService/GetKey";

#[tokio::test]
async fn a_message_that_cannot_be_read_is_the_callers_mistake() {
    let muster = Muster::start().await;
    let bearer = format!("Bearer {}", muster.operator_secret.expose());
    let refused = raw(&muster, GET_KEY, &bearer, vec![0xff, 0xfe]).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(reason(&refused), "MALFORMED_MESSAGE");
    let refused = raw(&muster, GET_KEY, &bearer, vec![b'a'; 70_000]).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reason(&refused), "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn a_name_as_long_as_a_message_is_not_found_either() {
    let muster = Muster::start().await;
    let bearer = format!("Bearer {}", muster.operator_secret.expose());
    let refused = raw(&muster, GET_KEY, &bearer, vec![b'a'; 60_000]).await;
    assert_eq!(refused.code(), Code::NotFound);
    let refused = raw(&muster, GET_KEY, &bearer, vec![0; 60_000]).await;
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn an_rpc_of_another_version_is_unimplemented_for_everybody() {
    let muster = Muster::start().await;
    for authorization in ["", "Bearer mst_nobody"] {
        let rpc = "/muster.keys.v1.KeyService/PolishKey";
        let refused = raw(&muster, rpc, authorization, Vec::new()).await;
        assert_eq!(refused.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_call_without_a_good_credential_is_refused() {
    let muster = Muster::with_integration().await;
    let (_, data_import_key) = muster.key("acme").await;
    let mut integrations = muster.operator.integrations();
    let created = integrations.create_partner_api_key(pb::CreatePartnerApiKeyRequest {
        partner: "tinyclues".to_owned(),
        ..Default::default()
    });
    let api_key = created.await.unwrap().into_inner().secret;
    let operator = muster.operator_secret.expose();
    let mistyped = format!("{}{}", &operator[..20], operator[21..].to_owned() + "0");
    let stranger =
        muster_domain::credential::Secret::generate(muster_domain::credential::Kind::ServiceToken);
    let list = pb::ListPartnersRequest::default;

    let anonymous = Connection::new(&muster.endpoint, None).unwrap();
    let refused = anonymous.integrations().list_partners(list()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(reason(&refused), "CREDENTIAL_MISSING");
    let stranger = stranger.unwrap();
    for secret in ["x", &mistyped, &api_key, stranger.expose()] {
        let caller = muster.with(secret);
        let refused = caller.integrations().list_partners(list()).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert_eq!(reason(&refused), "CREDENTIAL_INVALID");
        assert_eq!(refused.message(), "the credential is not valid");
    }
    // A data import key is known, but not for this.
    let partner = muster.with(&data_import_key);
    let refused = partner
        .integrations()
        .list_partners(list())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(reason(&refused), "CREDENTIAL_KIND");
}

#[tokio::test]
async fn health_needs_no_credential() {
    let muster = Muster::start().await;
    let channel = Endpoint::from_shared(muster.endpoint.clone()).unwrap();
    let mut client = Grpc::new(channel.connect().await.unwrap());
    client.ready().await.unwrap();
    // HealthCheckRequest.service and HealthCheckResponse.status; 1 is SERVING.
    for service in ["", "muster.keys.v1.KeyService"] {
        let request = Request::new(Raw {
            field: service.as_bytes().to_vec(),
        });
        let codec: ProstCodec<Raw, Health> = ProstCodec::default();
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        client.ready().await.unwrap();
        let answer = client.unary(request, path, codec).await.unwrap();
        assert_eq!(answer.into_inner().status, 1);
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[tokio::test]
async fn bad_input_names_the_field() {
    let muster = Muster::with_integration().await;
    let (mut keys, mut operator) = (muster.operator.keys(), muster.operator.integrations());
    let (key, _) = muster.key("acme").await;
    let long = "é".repeat(256);

    let mut key_with = async |change: fn(&mut pb::CreateKeyRequest, String)| {
        let mut request = new_key("acme", "");
        change(&mut request, long.clone());
        fields(&keys.create_key(request).await.unwrap_err())
    };
    assert_eq!(
        key_with(|request, long| request.label = long).await,
        ["label"]
    );
    assert_eq!(
        key_with(|request, _| request.label = "\n".into()).await,
        ["label"]
    );
    assert_eq!(
        key_with(|request, long| request.request_id = long).await,
        ["request_id"]
    );
    assert_eq!(
        key_with(|request, _| request.request_id = "\0".into()).await,
        ["request_id"]
    );
    for (seconds, nanos) in [(0, 0), (i64::MAX, 0), (4_000_000_000, -1)] {
        let request = pb::CreateKeyRequest {
            expire_time: Some(prost_types::Timestamp { seconds, nanos }),
            ..new_key("acme", "")
        };
        let refused = muster
            .operator
            .keys()
            .create_key(request)
            .await
            .unwrap_err();
        assert_eq!(fields(&refused), ["expire_time"]);
    }
    for overlap in [-1, 30 * 86_400 + 1, i64::MAX] {
        let request = rotate_key(&key, Some(overlap));
        let refused = muster
            .operator
            .keys()
            .rotate_key(request)
            .await
            .unwrap_err();
        assert_eq!(fields(&refused), ["overlap"]);
    }

    for workspace in ["", "Acme", "-a", &"a".repeat(65), "a\0"] {
        let request = pb::CreateWorkspaceRequest {
            workspace: workspace.to_owned(),
            ..Default::default()
        };
        let refused = operator.create_workspace(request).await.unwrap_err();
        assert_eq!(fields(&refused), ["workspace"]);
        let request = pb::CreatePartnerRequest {
            partner: workspace.to_owned(),
            ..Default::default()
        };
        let refused = operator.create_partner(request).await.unwrap_err();
        assert_eq!(fields(&refused), ["partner"]);
    }
    let request = pb::CreateWorkspaceRequest {
        workspace: "umbrella".to_owned(),
        display_name: long.clone(),
        ..Default::default()
    };
    let refused = operator.create_workspace(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["display_name"]);
    let request = pb::ListAuditEventsRequest {
        start_time: Some(prost_types::Timestamp {
            seconds: 0,
            nanos: -1,
        }),
        ..Default::default()
    };
    let refused = operator.list_audit_events(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["start_time"]);
    let request = pb::CreateServiceTokenRequest {
        label: long.clone(),
        ..new_token("", &["*"])
    };
    let refused = operator.create_service_token(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["label"]);
}

#[tokio::test]
async fn a_page_token_is_one_that_the_list_gave_out() {
    let muster = Muster::with_integration().await;
    let (mut keys, mut operator) = (muster.operator.keys(), muster.operator.integrations());
    // The last two decode to a number and to a text with a NUL.
    for token in ["x", "e30", "MQ", "ImFcdTAwMDAi"] {
        let page_token = token.to_owned();
        let request = pb::ListPartnersRequest {
            page_token: page_token.clone(),
            ..Default::default()
        };
        let refused = operator.list_partners(request).await.unwrap_err();
        assert_eq!(fields(&refused), ["page_token"]);
        let request = pb::ListKeysRequest {
            workspace: "acme".to_owned(),
            page_token: page_token.clone(),
            ..Default::default()
        };
        let refused = keys.list_keys(request).await.unwrap_err();
        assert_eq!(fields(&refused), ["page_token"]);
    }
    for page_size in [-1, 1_001] {
        let request = pb::ListWorkspacesRequest {
            page_size,
            ..Default::default()
        };
        let refused = operator.list_workspaces(request).await.unwrap_err();
        assert_eq!(fields(&refused), ["page_size"]);
    }
}

#[tokio::test]
async fn a_filter_by_a_partner_that_is_none_is_not_found() {
    let muster = Muster::with_integration().await;
    let mut keys = muster.operator.keys();
    for partner in ["nobody", "a\0", "Ünknown"] {
        let request = pb::ListKeysRequest {
            workspace: "acme".to_owned(),
            partner: partner.to_owned(),
            ..Default::default()
        };
        let refused = keys.list_keys(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
    }
}
