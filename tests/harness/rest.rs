//! A partner's HTTP client, that checks what every answer must have.

use std::time::{Duration, Instant};

use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

/// Calls one partner's endpoint with one pair of keys.
#[derive(Clone)]
pub struct Rest {
    client: reqwest::Client,
    base: String,
    /// Slug of the partner, as it stands in the path.
    pub partner: String,
    /// The partner's key.
    pub partner_api_key: String,
    /// The workspace's data import key.
    pub client_secret: String,
}

/// An answer of the endpoint.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, which is always JSON.
    pub body: Value,
    /// The headers.
    pub headers: HeaderMap,
    /// How long it took to come.
    pub took: Duration,
}

impl Rest {
    /// A client of the endpoint below `base`.
    pub fn new(base: &str, partner: &str, partner_api_key: &str, client_secret: &str) -> Self {
        // reqwest wants a provider for TLS also where there is none; one set before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            client: reqwest::Client::new(),
            base: base.to_owned(),
            partner: partner.to_owned(),
            partner_api_key: partner_api_key.to_owned(),
            client_secret: client_secret.to_owned(),
        }
    }

    /// The same client, that trusts no root but these, in PEM, if they are given.
    #[must_use]
    pub fn trusting(mut self, ca: Option<&[u8]>) -> Self {
        if let Some(ca) = ca {
            let roots = reqwest::Certificate::from_pem_bundle(ca).unwrap();
            let client = reqwest::Client::builder().tls_certs_only(roots);
            self.client = client.build().unwrap();
        }
        self
    }

    /// The same client, in clear, calling from this address of the machine.
    #[must_use]
    pub fn from(mut self, address: std::net::IpAddr) -> Self {
        let client = reqwest::Client::builder().local_address(address);
        self.client = client.build().unwrap();
        self
    }

    /// The same client with another data import key.
    pub fn with_client_secret(&self, client_secret: &str) -> Self {
        Self {
            client_secret: client_secret.to_owned(),
            ..self.clone()
        }
    }

    /// The same client with another partner API key.
    pub fn with_partner_api_key(&self, partner_api_key: &str) -> Self {
        Self {
            partner_api_key: partner_api_key.to_owned(),
            ..self.clone()
        }
    }

    /// Names a cohort.
    pub async fn name(&self, cohort_id: &str, name: &str) -> Answer {
        let answer = self.try_name(cohort_id, name).await;
        answer.unwrap()
    }

    /// Names a cohort; fails if no answer comes.
    ///
    /// # Errors
    /// What befell the connection.
    pub async fn try_name(&self, cohort_id: &str, name: &str) -> reqwest::Result<Answer> {
        let created_at = "2026-05-01T10:00:00Z";
        let fields = json!({ "cohort_id": cohort_id, "name": name, "created_at": created_at });
        self.try_call("cohorts", fields).await
    }

    /// Adds and removes users.
    pub async fn change(&self, cohort_id: &str, cohort_changes: Value) -> Answer {
        let answer = self.try_change(cohort_id, cohort_changes).await;
        answer.unwrap()
    }

    /// Adds and removes users; fails if no answer comes.
    ///
    /// # Errors
    /// What befell the connection.
    pub async fn try_change(&self, cohort_id: &str, changes: Value) -> reqwest::Result<Answer> {
        let fields = json!({ "cohort_id": cohort_id, "cohort_changes": changes });
        self.try_call("cohorts/users", fields).await
    }

    /// Posts fields, with the keys added, to `cohorts` or `cohorts/users`.
    pub async fn call(&self, call: &str, fields: Value) -> Answer {
        self.try_call(call, fields).await.unwrap()
    }

    /// The same, where no answer may come.
    ///
    /// # Errors
    /// If the connection is refused, or closed before there was an answer.
    ///
    /// # Panics
    /// If the answer is not what every answer must be.
    pub async fn try_call(&self, call: &str, mut fields: Value) -> reqwest::Result<Answer> {
        fields["partner_api_key"] = self.partner_api_key.clone().into();
        fields["client_secret"] = self.client_secret.clone().into();
        let path = format!("/partners/{}/{call}", self.partner);
        let json = "application/json";
        self.try_send(Method::POST, &path, json, fields.to_string())
            .await
    }

    /// Sends any request.
    ///
    /// # Panics
    /// If no answer comes, or if it lacks what every answer must have, or has what none may.
    pub async fn send(&self, method: Method, path: &str, media_type: &str, body: String) -> Answer {
        let answer = self.try_send(method, path, media_type, body).await;
        answer.unwrap()
    }

    async fn try_send(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: String,
    ) -> reqwest::Result<Answer> {
        let began = Instant::now();
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.header("content-type", media_type).body(body);
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await?;
        for secret in [&self.partner_api_key, &self.client_secret] {
            let told = !secret.is_empty()
                && (text.contains(secret.as_str()) || format!("{headers:?}").contains(secret));
            assert!(!told, "the answer repeats a secret: {text}");
        }
        let answer = Answer {
            status,
            body: serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}")),
            headers,
            took: began.elapsed(),
        };
        assert!(!answer.message().is_empty(), "{answer:?}");
        let [limit, remaining, reset] =
            ["limit", "remaining", "reset"].map(|n| answer.number(&format!("x-ratelimit-{n}")));
        assert!(remaining <= limit && reset > 1_700_000_000, "{answer:?}");
        let come_back = [423, 429, 503].contains(&status);
        assert_eq!(
            come_back,
            answer.headers.contains_key("retry-after"),
            "{answer:?}"
        );
        Ok(answer)
    }
}

impl Answer {
    /// What the body says.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// A header that is a number.
    pub fn number(&self, header: &str) -> u64 {
        let value = self
            .headers
            .get(header)
            .and_then(|value| value.to_str().ok());
        let value = value.unwrap_or_else(|| panic!("no {header}: {self:?}"));
        value.parse().unwrap()
    }

    /// Checks status and message.
    #[track_caller]
    pub fn says(self, status: u16, message: &str) -> Self {
        assert_eq!((self.status, self.message()), (status, message), "{self:?}");
        self
    }

    /// Checks that it is a 201.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        self.says(201, "success")
    }

    /// Checks that no identifier ended otherwise than these, and these so often; returns itself.
    #[track_caller]
    pub fn counted(self, expected: Value) -> Self {
        let mut counts = self.body["counts"].as_object().unwrap().clone();
        let received = counts.remove("received").unwrap();
        let sum: u64 = counts.values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(
            received, sum,
            "received is the sum of the outcomes: {self:?}"
        );
        counts.retain(|_, count| *count != json!(0));
        assert_eq!(Value::Object(counts), expected, "{self:?}");
        self
    }
}
