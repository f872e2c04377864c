//! Hostile messages: whatever a caller sends, the answer is about the caller's mistake, never about
//! ours. The messages come from the descriptor set, so a new rpc is covered by being there.

mod messages;

use std::time::Duration;

use http::uri::PathAndQuery;
use muster_proto::segments::v1 as segments;
use muster_tests::{Muster, PARTNER, WORKSPACE, identified, text};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tokio::time::timeout;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};

use self::messages::{Known, calls};

/// Calls that are made of each rpc at most; drawn from all that there are, always the same.
const CALLS_PER_RPC: usize = 30;

/// How many run at once.
const WORKERS: usize = 4;

/// Rpcs that take away what others need come last.
const DESTRUCTIVE: [&str; 7] = [
    "Archive", "Abort", "Merge", "Delete", "Disable", "Revoke", "Rotate",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_of_any_rpc_is_answered_with_an_error_of_ours() {
    let muster = Muster::start().await;
    let known = known(&muster).await;
    let pool = DescriptorPool::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut rpcs: Vec<MethodDescriptor> = pool
        .services()
        .filter(|service| service.full_name().starts_with("muster."))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    rpcs.sort_by_key(|rpc| DESTRUCTIVE.iter().any(|verb| rpc.name().starts_with(verb)));
    assert!(rpcs.len() > 40, "{} rpcs", rpcs.len());

    let channel = Endpoint::from_shared(muster.grpc.clone()).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut ours = Vec::new();
    for rpc in rpcs {
        let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
        let calls = calls(&rpc, &known, CALLS_PER_RPC);
        let workers = (0..WORKERS).map(|worker| {
            let calls: Vec<_> = calls
                .iter()
                .skip(worker)
                .step_by(WORKERS)
                .cloned()
                .collect();
            let (channel, path) = (channel.clone(), path.clone());
            let token = muster.operator_token.clone();
            tokio::spawn(async move {
                let mut ours = Vec::new();
                for call in calls {
                    let status = send(&channel, &path, &token, call.messages).await;
                    let theirs = !matches!(
                        status.code(),
                        Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable
                    );
                    if !theirs {
                        ours.push(format!("{path}: {}: {status:?}", call.what));
                    }
                }
                ours
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            ours.extend(worker.await.unwrap());
        }
    }
    assert!(ours.is_empty(), "{} calls\n{}", ours.len(), ours.join("\n"));
    muster.stop().await;
}

/// A shop with something of everything that a message can name.
async fn known(muster: &Muster) -> Known {
    use muster_proto::keys::v1 as keys;

    let ids: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
    muster
        .upsert_users(ids.iter().map(|id| identified(id)).collect())
        .await;
    let rest = muster.rest();
    let answer = rest
        .change("spring", serde_json::json!([{ "user_ids": ids }]))
        .await;
    let import = answer.body["import_id"].as_str().unwrap().to_owned();
    let filter = format!("{PARTNER}:id(\"spring\")");
    let mut client = muster.operator.segments();
    let segment = client
        .create_segment(segments::CreateSegmentRequest {
            workspace: WORKSPACE.into(),
            name: "spring".into(),
            filter: Some(text(&filter)),
            request_id: String::new(),
        })
        .await
        .unwrap()
        .into_inner();
    muster.audience(&filter).await;
    let resolutions = client
        .list_resolutions(segments::ListResolutionsRequest {
            workspace: WORKSPACE.into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    let token = keys::CreateServiceTokenRequest {
        label: "spring".into(),
        scopes: vec!["segments:read".into()],
        ..Default::default()
    };
    let token = muster
        .operator
        .integrations()
        .create_service_token(token)
        .await;
    let key = muster.create_key().await;
    Known {
        filter,
        import,
        segment: segment.segment.unwrap().segment_id,
        resolution: resolutions.resolutions[0].resolution_id.clone(),
        token: token.unwrap().into_inner().token.unwrap().token_id,
        key: key.key.unwrap().key_id,
    }
}

/// How a call ends: the first error, or that there was none.
async fn send(channel: &Channel, path: &str, token: &str, messages: Vec<Vec<u8>>) -> Status {
    let call = async {
        let mut client = Grpc::new(channel.clone());
        client
            .ready()
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        let mut request = Request::new(tokio_stream::iter(messages));
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let path = PathAndQuery::try_from(path).unwrap();
        let mut answers = client.streaming(request, path, Bytes).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    };
    match timeout(Duration::from_secs(30), call).await {
        Ok(Ok(())) => Status::ok(""),
        Ok(Err(status)) => status,
        Err(_) => Status::unknown("no answer within 30 s"),
    }
}

/// Messages as they are on the wire, whatever they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(out, &message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let length = bytes::Buf::remaining(message);
        bytes::Buf::advance(message, length);
        Ok(Some(()))
    }
}
