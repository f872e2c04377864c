//! Whether a server is well, as it says itself.

use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::Connection;

/// What a deployment says of one of its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It takes calls.
    Serving,
    /// It takes none, or no new ones: it is about to stop.
    NotServing,
    /// The endpoint does not have it.
    Absent,
}

impl Connection {
    /// Asks whether a service, such as `muster.ingest.v1.IngestService`, is well.
    ///
    /// # Errors
    /// If nobody answers.
    pub async fn health(&self, service: &str) -> Result<Health, Status> {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = HealthClient::new(self.client()).check(request).await;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(Health::Serving),
            Ok(ServingStatus::ServiceUnknown) => Ok(Health::Absent),
            Ok(ServingStatus::NotServing | ServingStatus::Unknown) => Ok(Health::NotServing),
            Err(status) if status.code() == Code::NotFound => Ok(Health::Absent),
            Err(status) => Err(status),
        }
    }
}
