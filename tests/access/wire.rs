//! Any rpc of the contract, called with a request in JSON, as its descriptor says.

use std::{sync::LazyLock, time::Duration};

use muster_client::Refusal;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{Ascii, MetadataKey},
    transport::Channel,
};

/// Longest time a call may take.
const PATIENCE: Duration = Duration::from_secs(30);

static CONTRACT: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap());

/// Every rpc of the contract.
pub(crate) fn rpcs() -> impl Iterator<Item = MethodDescriptor> {
    CONTRACT.services().flat_map(|service| {
        let methods: Vec<MethodDescriptor> = service.methods().collect();
        methods
    })
}

/// An rpc as the rows name it, such as `muster.keys.v1.KeyService/GetKey`.
pub(crate) fn name(rpc: &MethodDescriptor) -> String {
    format!("{}/{}", rpc.parent_service().full_name(), rpc.name())
}

/// The rpc of this name.
pub(crate) fn rpc(name: &str) -> Option<MethodDescriptor> {
    rpcs().find(|rpc| self::name(rpc) == name)
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// `OK` or the reason of the refusal.
    pub(crate) code: Code,
    /// The stable reason; empty if it was carried out.
    pub(crate) reason: String,
    /// What the server says.
    pub(crate) message: String,
    /// The messages that came, in JSON.
    pub(crate) messages: Vec<Value>,
}

/// Calls an rpc and reads its answers to the end. Each header is a name and a value.
pub(crate) async fn call(
    channel: &Channel,
    rpc: &MethodDescriptor,
    request: &Value,
    headers: &[(&str, &str)],
) -> Answer {
    let message = DynamicMessage::deserialize(rpc.input(), request)
        .unwrap_or_else(|e| panic!("{}: {e} in {request}", name(rpc)));
    let mut request = Request::new(tokio_stream::once(message));
    for (header, value) in headers {
        let header: MetadataKey<Ascii> = header.parse().unwrap();
        request
            .metadata_mut()
            .insert(header, value.parse().unwrap());
    }
    let mut messages = Vec::new();
    let exchange = exchange(channel, rpc, request, &mut messages);
    let ended = tokio::time::timeout(PATIENCE, exchange).await;
    match ended.unwrap_or_else(|_| panic!("{} does not end", name(rpc))) {
        Ok(()) => Answer {
            code: Code::Ok,
            reason: String::new(),
            message: String::new(),
            messages,
        },
        Err(status) => {
            let refusal = Refusal::from(status);
            Answer {
                code: refusal.code,
                reason: refusal.reason,
                message: refusal.message,
                messages,
            }
        }
    }
}

async fn exchange(
    channel: &Channel,
    rpc: &MethodDescriptor,
    request: Request<tokio_stream::Once<DynamicMessage>>,
    messages: &mut Vec<Value>,
) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = format!("/{}", name(rpc)).parse().unwrap();
    let answer = client
        .streaming(request, path, Dynamic(rpc.output()))
        .await?;
    let mut answers = answer.into_inner();
    while let Some(answer) = answers.next().await {
        messages.push(serde_json::to_value(&answer?).unwrap());
    }
    Ok(())
}

/// Encodes whatever it is given and decodes what the descriptor describes.
#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out)
            .map_err(|e| Status::internal(e.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), from);
        message
            .map(Some)
            .map_err(|e| Status::internal(e.to_string()))
    }
}
