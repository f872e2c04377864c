//! Who calls: from the credential in the metadata to a [`Caller`] that has passed the
//! authorisation table.
//!
//! Credentials are looked up for every call, so a revocation is effective at once on every server.
//! That has connections of its own: work that waits for a contended cohort must lock nobody out.

use std::{
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request as HttpRequest, Response as HttpResponse};
use http_body_util::BodyExt as _;
use muster_domain::{
    credential::{Digest, Kind as CredentialKind, Secret},
    error::{Error, Kind, Result},
    name,
};
use muster_listener::{Peer, Stay};
use muster_storage::{
    Connection, Store, WorkspaceId,
    audit::By,
    credentials::{self, Credential, State},
    share::Held,
    workspaces,
};
use tokio::time::{Instant, timeout};
use tonic::{Request, Status, body::Body};
use tower::{Layer, Service};
use uuid::Uuid;

use crate::{
    admission::{GIVE_UP, unconfirmed},
    attempts::{self, Attempts},
    authorization::{Rule, Scopes, rule},
    intake::Messages,
    refusals::{Refusals, Refused},
    response::status,
    traffic::{self, Account, Traffic},
};

/// The reason why a workspace was not found by a credential that is bound to another one.
const OTHER_WORKSPACE: &str = "OTHER_WORKSPACE";

/// Somebody whose credential was accepted for the rpc called.
#[derive(Debug, Clone)]
pub struct Caller {
    /// How the audit trail names the caller, such as `service_token:0195…`.
    pub actor: String,
    /// The credential, to check again later.
    pub credential: Uuid,
    /// The rpc that it was accepted for, as `/package.Service/Method`.
    pub rpc: &'static str,
    /// What a service token may do; empty for a data import key.
    pub scopes: Scopes,
    /// The only workspace the caller may see.
    pub bound_to: Option<(WorkspaceId, String)>,
    /// The only partner the caller may see: that of its data import key.
    pub partner: Option<String>,
    /// When the look-up that admitted it began.
    pub admitted_at: Instant,
    /// The address that the call came from; `None` if it came from no network.
    pub peer: Option<IpAddr>,
    traffic: Arc<Traffic>,
    refusals: Refusals,
    messages: Messages,
}

/// Takes a request apart into who calls and what is asked.
///
/// # Panics
/// If the rpc was reached without [`AuthLayer`], which is a defect.
pub fn admitted<T>(mut request: Request<T>) -> (Caller, T) {
    let caller = request
        .extensions_mut()
        .remove::<Caller>()
        .expect("every rpc is behind the layer that admits callers");
    (caller, request.into_inner())
}

impl Caller {
    /// How the audit trail names who does something, and from where.
    pub fn by(&self) -> By<'_> {
        By {
            actor: &self.actor,
            peer: self.peer,
        }
    }

    /// The workspace that a request names; empty means the caller's own.
    ///
    /// # Errors
    /// `NOT_FOUND` for a workspace that does not exist or that the caller may not see;
    /// `INVALID_ARGUMENT` if it is empty and the caller is not bound to one; `RESOURCE_EXHAUSTED`
    /// (`RATE_LIMITED`) if the workspace has had too many calls.
    pub async fn workspace(&self, store: &Store, slug: &str) -> Result<WorkspaceId> {
        match &self.bound_to {
            Some((id, own)) if slug.is_empty() || slug == own => Ok(*id),
            Some(_) => {
                self.tell_refusal(store, OTHER_WORKSPACE).await;
                Err(Error::not_found("workspace", slug))
            }
            None if slug.is_empty() => Err(Error::field("workspace", "must not be empty")),
            // Postgres would refuse some of what is no slug, such as a NUL, as a broken query.
            None if name::check_slug(slug).is_err() => Err(Error::not_found("workspace", slug)),
            None => {
                let mut connection = store.connection().await?;
                let found = workspaces::find(&mut connection, slug).await?;
                let workspace = found.ok_or_else(|| Error::not_found("workspace", slug))?;
                // Of callers that are bound to one it was counted before.
                self.traffic.workspace_call(workspace.id)?;
                Ok(workspace.id)
            }
        }
    }

    /// Puts on record that the caller may not do what it asked for, and why.
    pub async fn tell_refusal(&self, store: &Store, reason: &'static str) {
        let own = self.bound_to.as_ref().map(|(id, _)| *id);
        let refused = Refused::to_call(self.credential, self.by(), own, self.rpc, reason);
        self.refusals.tell_through(store, refused).await;
    }

    /// The partner that a request names; empty means the caller's own, if it has one.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` (`CREDENTIAL_INVALID`) if the caller's key belongs to another partner.
    pub fn partner<'a>(&'a self, named: &'a str) -> Result<&'a str> {
        match self.partner.as_deref() {
            None => Ok(named),
            Some(own) if named.is_empty() || named == own => Ok(own),
            Some(_) => Err(credential_invalid()),
        }
    }

    /// Counts identifiers that the caller sends for a workspace.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`RATE_LIMITED`).
    pub fn count_identifiers(&self, workspace: WorkspaceId, amount: usize) -> Result<()> {
        let amount = u64::try_from(amount).unwrap_or(u64::MAX);
        self.traffic.identifiers(self, workspace, amount)
    }

    /// The memory that the message read last takes, for the reader of a stream to hold as long as
    /// the message. The message of a call that is no stream has it until the caller is dropped.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`TOO_MANY_BYTES`).
    pub fn memory(&self) -> Result<Held> {
        self.messages.read()
    }

    /// Whether the caller may see what belongs to a partner.
    pub fn sees_partner(&self, partner: &str) -> bool {
        self.partner.as_deref().is_none_or(|own| own == partner)
    }

    /// Checks that the credential is still accepted; calls that last have an
    /// [`Admission`](crate::Admission) do it.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` (`CREDENTIAL_INVALID`) if it is not any more.
    pub async fn check_active(&self, store: &Store) -> Result<()> {
        let mut connection = store.credential_connection().await?;
        if credentials::is_active(&mut connection, self.credential, self.peer).await? {
            Ok(())
        } else {
            Err(credential_invalid())
        }
    }
}

/// Unknown, malformed, revoked, expired, not from here, or not for this: the caller cannot tell which.
pub fn credential_invalid() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "CREDENTIAL_INVALID",
        "the credential is not valid",
    )
}

/// Admits calls whose credential the authorisation table accepts.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    store: Store,
    attempts: Arc<Attempts>,
    traffic: Arc<Traffic>,
    refusals: Refusals,
}

impl AuthLayer {
    /// Looks credentials up in a store.
    pub fn new(store: Store, attempts: &attempts::Settings, traffic: &traffic::Settings) -> Self {
        Self {
            store,
            attempts: Arc::new(Attempts::new(attempts)),
            traffic: Arc::new(Traffic::new(traffic)),
            refusals: Refusals::default(),
        }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth {
            inner,
            door: self.clone(),
        }
    }
}

/// The service that [`AuthLayer`] makes.
#[derive(Debug, Clone)]
pub struct Auth<S> {
    inner: S,
    door: AuthLayer,
}

impl<S> Service<HttpRequest<Body>> for Auth<S>
where
    S: Service<HttpRequest<Body>, Response = HttpResponse<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = HttpResponse<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: HttpRequest<Body>) -> Self::Future {
        if is_open(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let Some(rule) = rule(request.uri().path()) else {
            // What clients take for a server of another version, which it is.
            let unknown = Status::unimplemented("the server does not know this rpc");
            return Box::pin(async { Ok(unknown.into_http()) });
        };
        // The service that was polled ready is the one to call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let door = self.door.clone();
        Box::pin(async move {
            let peer = peer(&request);
            // A database that goes silent in the middle of a query says nothing for a long time.
            let admitting = timeout(GIVE_UP, door.admit(rule, request.headers(), peer));
            match admitting.await.unwrap_or_else(|_| Err(unconfirmed())) {
                Ok((caller, place)) => {
                    if let Some(stay) = request.extensions().get::<Stay>() {
                        stay.grant();
                    }
                    let messages = caller.messages.clone();
                    request = request.map(|body| Body::new(messages.arriving(body)));
                    request.extensions_mut().insert(caller);
                    let answer = inner.call(request).await?;
                    // The call lasts until its answer has been given, or is not wanted any more.
                    let to_the_end = move |frame| {
                        let _ = &place;
                        frame
                    };
                    Ok(answer.map(|body| Body::new(body.map_frame(to_the_end))))
                }
                Err(error) => Ok(status(error).into_http()),
            }
        })
    }
}

/// The address that a request came from. A caller within the process, which no network can pass for,
/// and one with a certificate, such as a bridge elsewhere, may say for whom it calls.
fn peer(request: &HttpRequest<Body>) -> Option<IpAddr> {
    let peer = request.extensions().get::<Peer>()?;
    let said = match peer.address.is_none() || peer.certified {
        true => request.headers().get("muster-caller-address"),
        false => None,
    };
    let said: Option<IpAddr> = said.and_then(|said| said.to_str().ok()?.parse().ok());
    let address = said.or(peer.address.map(|address| address.ip()))?;
    Some(address.to_canonical())
}

/// Whether anybody may call it: probes and tools have no credential, and learn no secret there.
fn is_open(path: &str) -> bool {
    ["/grpc.health.v1.", "/grpc.reflection.v1."]
        .iter()
        .any(|package| path.starts_with(package))
}

/// A secret as it was presented, that may be one of ours.
struct Presented {
    secret: Secret,
    digest: Digest,
}

impl AuthLayer {
    /// Who calls, and the call's place among those that are open. The database is asked only where
    /// nothing speaks against it.
    async fn admit(
        &self,
        rule: &'static Rule,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
    ) -> Result<(Caller, Held)> {
        let presented_key = match headers.get("muster-partner-api-key") {
            None => None,
            Some(value) => {
                let text = value.to_str().ok();
                let text = text.ok_or_else(partner_key_invalid)?;
                Some(self.recognise(text, peer, partner_key_invalid)?)
            }
        };
        let bearer = headers
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| {
                Error::new(
                    Kind::Unauthenticated,
                    "CREDENTIAL_MISSING",
                    "the call needs `authorization: Bearer …` in its metadata",
                )
            })?;
        let bearer = self.recognise(bearer, peer, credential_invalid)?;
        if let Some(key) = &presented_key
            && key.secret.kind() != CredentialKind::PartnerApiKey
        {
            self.attempts.unknown(peer, Some(&key.digest))?;
            return Err(partner_key_invalid());
        }
        let mut connection = self.store.credential_connection().await?;
        let admitted_at = Instant::now();
        let key_digest = presented_key.as_ref().map(|key| &key.digest);
        let found = credentials::find_by_digest(&mut connection, &bearer.digest, key_digest);
        let found = found.await?;
        let partner_key = match &presented_key {
            None => None,
            Some(key) => {
                let accepted = self.accept(&mut connection, key, &found, peer).await?;
                Some(accepted.ok_or_else(partner_key_invalid)?)
            }
        };
        let accepted = self.accept(&mut connection, &bearer, &found, peer).await?;
        let credential = accepted.ok_or_else(credential_invalid)?;
        let scopes = match authorize(credential, rule) {
            Ok(scopes) => scopes,
            Err(error) => {
                self.attempts.misused(&bearer.digest);
                // Others have no business with any rpc.
                if error.kind == Kind::PermissionDenied {
                    let actor = &credential.actor();
                    let (id, by) = (credential.id, By { actor, peer });
                    let workspace = credential.workspace.as_ref().map(|(id, _)| *id);
                    let refused = Refused::to_call(id, by, workspace, rule.rpc, error.reason);
                    self.refusals.tell(&mut connection, refused).await;
                }
                return Err(error);
            }
        };
        let caller = Caller {
            actor: credential.actor(),
            credential: credential.id,
            rpc: rule.rpc,
            scopes,
            bound_to: credential.workspace.clone(),
            partner: credential.partner.clone(),
            admitted_at,
            peer,
            traffic: Arc::clone(&self.traffic),
            refusals: self.refusals.clone(),
            messages: self
                .traffic
                .messages(credential.workspace.as_ref().map(|(id, _)| *id)),
        };
        if let (Some(_), Some(partner)) = (&caller.bound_to, &caller.partner) {
            if partner_key.is_some_and(|key| key.partner.as_ref() != Some(partner)) {
                self.attempts.misused(&bearer.digest);
                return Err(credential_invalid());
            }
            if !credential.partner_enabled {
                let reason = "PARTNER_NOT_ENABLED";
                let refused = Refused::to_enter(credential, peer, reason);
                self.refusals.tell(&mut connection, refused).await;
                return Err(Error::new(
                    Kind::PermissionDenied,
                    reason,
                    "the workspace has not enabled the partner",
                ));
            }
        }
        let account = Account::of(&caller);
        let place = self.traffic.begin(&account);
        if let Some(key) = presented_key {
            self.attempts.accepted_from(peer, &key.digest, None);
        }
        self.attempts
            .accepted_from(peer, &bearer.digest, Some(account));
        Ok((caller, place?))
    }

    /// Reads a secret, if its like may be looked up for a caller from there.
    fn recognise(
        &self,
        text: &str,
        peer: Option<IpAddr>,
        refusal: fn() -> Error,
    ) -> Result<Presented> {
        let Ok(secret) = Secret::parse(text) else {
            self.attempts.unknown(peer, None)?;
            return Err(refusal());
        };
        let digest = secret.digest();
        if let Some(account) = self.attempts.check(peer, &digest)? {
            self.traffic.check(&account)?;
        }
        Ok(Presented { secret, digest })
    }

    /// The credential that a secret stands for, of those that were found, if it is accepted from
    /// there.
    async fn accept<'a>(
        &self,
        connection: &mut Connection,
        presented: &Presented,
        found: &'a [Credential],
        peer: Option<IpAddr>,
    ) -> Result<Option<&'a Credential>> {
        let (kind, digest) = (presented.secret.kind(), &presented.digest);
        let stands_for = |it: &&Credential| it.kind == kind && it.digest == *digest;
        let Some(credential) = found.iter().find(stands_for) else {
            // The answer is the same, whether or not this was one too many.
            let _ = self.attempts.unknown(peer, Some(digest));
            return Ok(None);
        };
        let reason = match credential.state {
            State::Active if credential.is_allowed_from(peer) => {
                if !credential.used_just_now {
                    credentials::touch(connection, credential.id).await?;
                }
                return Ok(Some(credential));
            }
            // The caller learns nothing, but it may have been stolen.
            State::Active => {
                self.attempts.misplaced(peer, digest);
                "ADDRESS_NOT_ALLOWED"
            }
            State::Expired => {
                let _ = self.attempts.unknown(peer, Some(digest));
                "CREDENTIAL_EXPIRED"
            }
            State::Revoked => {
                let _ = self.attempts.unknown(peer, Some(digest));
                "CREDENTIAL_REVOKED"
            }
        };
        let refused = Refused::to_enter(credential, peer, reason);
        self.refusals.tell(connection, refused).await;
        Ok(None)
    }
}

fn partner_key_invalid() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "PARTNER_API_KEY_INVALID",
        "the partner API key is not valid",
    )
}

/// What a credential may do, if that includes this.
fn authorize(credential: &Credential, rule: &Rule) -> Result<Scopes> {
    Ok(match credential.kind {
        CredentialKind::ServiceToken => {
            let scopes = Scopes::parse(&credential.scopes)?;
            if !scopes.contain(rule.scope) {
                return Err(Error::new(
                    Kind::PermissionDenied,
                    "SCOPE_MISSING",
                    format!("the token lacks the scope {}", rule.scope),
                ));
            }
            scopes
        }
        CredentialKind::DataImportKey if rule.data_import_key => Scopes::Only(Vec::new()),
        CredentialKind::DataImportKey => {
            return Err(Error::new(
                Kind::PermissionDenied,
                "CREDENTIAL_KIND",
                "a data import key cannot call this; a service token can",
            ));
        }
        // It says which partner calls, but is no credential for anything by itself.
        CredentialKind::PartnerApiKey => return Err(credential_invalid()),
    })
}
