//! What an operator's tools ask a server: is it well, and what does it serve?

use muster_cli::deployment::Settings;
use muster_tests::Muster;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

const SERVICES: [&str; 5] = [
    "muster.ingest.v1.IngestService",
    "muster.keys.v1.IntegrationService",
    "muster.keys.v1.KeyService",
    "muster.segments.v1.SegmentService",
    "muster.users.v1.UserService",
];

#[tokio::test]
async fn every_server_tells_its_health_without_a_credential() {
    let muster = Muster::start().await;
    let channel = Endpoint::from_shared(muster.grpc.clone()).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    for service in [""].iter().chain(&SERVICES) {
        let request = HealthCheckRequest {
            service: (*service).into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    muster.stop().await;
}

#[tokio::test]
async fn reflection_is_served_only_where_it_is_switched_on() {
    let off = Muster::start().await;
    assert_eq!(
        services(&off).await.unwrap_err().code(),
        Code::Unimplemented
    );
    off.stop().await;
    let on = Muster::start_with(Settings {
        reflection: true,
        ..Settings::default()
    })
    .await;
    let names = services(&on).await.unwrap();
    for service in SERVICES {
        assert!(
            names.iter().any(|name| name == service),
            "{service}: {names:?}"
        );
    }
    on.stop().await;
}

async fn services(muster: &Muster) -> Result<Vec<String>, tonic::Status> {
    let channel = Endpoint::from_shared(muster.grpc.clone()).unwrap();
    let mut reflection = ServerReflectionClient::new(channel.connect().await.unwrap());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let request = tokio_stream::once(request);
    let answers = reflection.server_reflection_info(request).await?;
    let answer = answers.into_inner().message().await?.unwrap();
    match answer.message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => Ok(list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect()),
        other => panic!("{other:?}"),
    }
}
