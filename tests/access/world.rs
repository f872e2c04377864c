//! One of everything that a request can name, in a workspace and of a partner.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use muster_cli::deployment::Settings;
use muster_client::upload::{Outcome, Upload};
use muster_domain::{
    identifier::IdentifierRef,
    import::{Effect, Mode},
};
use muster_service::ConsistencyToken;
use muster_tests::{Muster, PARTNER, WORKSPACE};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::wire::{self, Answer};

/// Another workspace than the shop's.
pub(crate) const RIVAL: &str = "rival";

/// Another partner, that both workspaces have enabled, too.
pub(crate) const OTHER_PARTNER: &str = "amplitude";

/// A partner that is enabled and disabled.
const SPARE_PARTNER: &str = "spare";

/// Users that only the rival has, so that it has numbers that the shop has not.
const MORE_USERS: usize = 40;

/// A deployment with two workspaces and two partners. One at a time in this process, since what is
/// said to the database is listened to.
pub(crate) struct Deployment {
    /// Its servers.
    pub(crate) muster: Muster,
    /// A connection without a credential.
    pub(crate) channel: Channel,
    _alone: MutexGuard<'static, ()>,
}

impl Deployment {
    /// Starts it and creates what stands in the control tables.
    pub(crate) async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    /// The same with settings of its own.
    pub(crate) async fn start_with(settings: Settings) -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let muster = Muster::start_with(settings).await;
        let channel = Endpoint::from_shared(muster.grpc.clone()).unwrap();
        let deployment = Self {
            channel: channel.connect_lazy(),
            muster,
            _alone: alone,
        };
        let integrations = "muster.keys.v1.IntegrationService";
        let create = format!("{integrations}/CreateWorkspace");
        deployment
            .operator(&create, json!({ "workspace": RIVAL }))
            .await;
        for partner in [OTHER_PARTNER, SPARE_PARTNER] {
            let create = format!("{integrations}/CreatePartner");
            deployment
                .operator(&create, json!({ "partner": partner }))
                .await;
        }
        for workspace in [WORKSPACE, RIVAL] {
            for partner in [PARTNER, OTHER_PARTNER, SPARE_PARTNER] {
                let enable = format!("{integrations}/EnablePartner");
                let request = json!({ "workspace": workspace, "partner": partner });
                deployment.operator(&enable, request).await;
            }
        }
        deployment
    }

    /// Calls an rpc with a bearer credential.
    pub(crate) async fn call(&self, rpc: &str, request: &Value, bearer: &str) -> Answer {
        let bearer = format!("Bearer {bearer}");
        let headers = [("authorization", bearer.as_str())];
        self.call_with(rpc, request, &headers).await
    }

    /// Calls an rpc with headers.
    pub(crate) async fn call_with(
        &self,
        rpc: &str,
        request: &Value,
        headers: &[(&str, &str)],
    ) -> Answer {
        let rpc = wire::rpc(rpc).unwrap_or_else(|| panic!("{rpc} is not in the contract"));
        wire::call(&self.channel, &rpc, request, headers).await
    }

    /// Calls an rpc as the operator, who must be served; returns the first answer, if any.
    pub(crate) async fn operator(&self, rpc: &str, request: Value) -> Value {
        let answer = self.call(rpc, &request, &self.muster.operator_token).await;
        assert_eq!(answer.reason, "", "{rpc} {request}: {answer:?}");
        answer.messages.into_iter().next().unwrap_or_default()
    }

    /// A new service token; for every workspace if none is named.
    pub(crate) async fn token(&self, workspace: &str, scopes: &[&str]) -> Made {
        let request = json!({ "workspace": workspace, "label": "test", "scopes": scopes });
        let rpc = "muster.keys.v1.IntegrationService/CreateServiceToken";
        let made = self.operator(rpc, request).await;
        Made::new(&made["secret"], &made["token"]["tokenId"])
    }

    /// A new data import key.
    pub(crate) async fn key(&self, workspace: &str, partner: &str) -> Made {
        let request = json!({ "workspace": workspace, "partner": partner });
        let made = self
            .operator("muster.keys.v1.KeyService/CreateKey", request)
            .await;
        Made::new(&made["secret"], &made["key"]["keyId"])
    }

    /// A new partner API key.
    pub(crate) async fn partner_key(&self, partner: &str) -> Made {
        let rpc = "muster.keys.v1.IntegrationService/CreatePartnerApiKey";
        let made = self.operator(rpc, json!({ "partner": partner })).await;
        Made::new(&made["secret"], &made["key"]["keyId"])
    }
}

/// A credential that was made.
pub(crate) struct Made {
    /// Its secret.
    pub(crate) secret: String,
    /// Its id.
    pub(crate) id: String,
}

impl Made {
    pub(crate) fn new(secret: &Value, id: &Value) -> Self {
        Self {
            secret: text(secret),
            id: text(id),
        }
    }
}

/// One of everything, by the name that stands for it in a request.
#[derive(Debug, Clone)]
pub(crate) struct World(BTreeMap<&'static str, String>);

impl World {
    /// Makes one of everything.
    pub(crate) async fn make(on: &Deployment, workspace: &str, partner: &str) -> Self {
        let mut world = Self(BTreeMap::new());
        let mark = format!("{workspace}-{partner}");
        world.set("mark", &mark);
        world.set("workspace", workspace);
        world.set("partner", partner);
        world.set("spare_partner", SPARE_PARTNER);
        world.make_credentials(on).await;
        world.make_users(on).await;
        world.make_cohorts(on).await;
        world.make_segments(on).await;
        world
    }

    /// Ids that look like those of a world and of which none exists.
    pub(crate) fn of_nothing(like: &Self) -> Self {
        let mut world = like.clone();
        for (name, value) in &mut world.0 {
            *value = match *name {
                "partner" | "spare_partner" => value.clone(),
                "workspace" => "nowhere".to_owned(),
                "user_no" => "3000000000".to_owned(),
                "consistency_token" => ConsistencyToken {
                    workspace: i64::MAX,
                    directory_epoch: 1,
                    cohort: None,
                }
                .encode(),
                // Of another resolution, which the caller could have been given.
                "resume_token" => like.get("later_resume_token"),
                _ if value.parse::<Uuid>().is_ok() => Uuid::now_v7().to_string(),
                name => format!("no-such-{name}"),
            };
        }
        world
    }

    /// What a name stands for.
    pub(crate) fn get(&self, name: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        match name {
            "fresh" => format!("fresh-{}", COUNT.fetch_add(1, Ordering::Relaxed)),
            "request" => Uuid::now_v7().to_string(),
            name => {
                let known = self.0.get(name);
                known
                    .unwrap_or_else(|| {
                        panic!("{{{name}}} is made nowhere: make it in tests/access/world.rs")
                    })
                    .clone()
            }
        }
    }

    /// A text that is part of everything in it that has a name.
    pub(crate) fn mark(&self) -> String {
        self.get("mark")
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.0.insert(name, value.to_owned());
    }

    fn named(&mut self, name: &'static str) -> String {
        let value = format!("{}-{}", self.mark(), name.replace('_', "-"));
        self.set(name, &value);
        value
    }

    async fn make_credentials(&mut self, on: &Deployment) {
        let (workspace, partner) = (self.get("workspace"), self.get("partner"));
        for name in ["key", "key_to_revoke", "key_to_rotate"] {
            let made = on.key(&workspace, &partner).await;
            self.set(name, &made.id);
        }
        let key = on.key(&workspace, &partner).await;
        self.set("client_secret", &key.secret);
        self.set("partner_key", &on.partner_key(&partner).await.id);
        // Two, so that their list has a second page.
        on.token(&workspace, &["keys:read"]).await;
        self.set("token", &on.token(&workspace, &["keys:read"]).await.id);
    }

    async fn make_users(&mut self, on: &Deployment) {
        let (workspace, mark) = (self.get("workspace"), self.mark());
        let mut users = Vec::new();
        if workspace == RIVAL {
            users.extend((0..MORE_USERS).map(|n| json!({ "external_id": format!("{mark}-{n}") })));
        }
        for name in ["user", "second_user", "user_to_merge", "user_to_delete"] {
            users.push(json!({ "external_id": self.named(name) }));
        }
        users.push(json!({ "device_ids": [self.named("device")] }));
        let alias = json!({ "label": "mail", "name": self.named("alias") });
        users.push(json!({ "external_id": format!("{mark}-alias"), "aliases": [alias] }));
        let request = json!({ "workspace": workspace, "users": users });
        on.operator("muster.users.v1.UserService/UpsertUsers", request)
            .await;
        let request = json!({
            "workspace": workspace, "identifier": { "external_id": self.get("user") },
        });
        let found = on
            .operator("muster.users.v1.UserService/FindUser", request)
            .await;
        let number = found["user"]["userNo"].as_u64().unwrap_or_default();
        self.set("user_no", &number.to_string());
    }

    async fn make_cohorts(&mut self, on: &Deployment) {
        let [cohort, archive, confirm] =
            ["cohort", "cohort_to_archive", "cohort_to_confirm"].map(|name| self.named(name));
        let cohort_name = self.named("cohort_name");
        let import = self.named("import");
        let both = [
            self.get("user"),
            self.get("second_user"),
            "unknown".to_owned(),
            "as unknown".to_owned(),
        ];
        let earlier = format!("{import}-earlier");
        self.upload(on, &cohort, &cohort_name, Mode::Delta, &earlier, &both[..1])
            .await;
        let imported = self
            .upload(on, &cohort, &cohort_name, Mode::Delta, &import, &both)
            .await;
        let Outcome::Committed {
            consistency_token, ..
        } = imported
        else {
            panic!("it is published: {imported:?}");
        };
        self.set("consistency_token", &consistency_token);
        self.upload(
            on,
            &archive,
            "",
            Mode::Delta,
            &format!("{archive}-import"),
            &[],
        )
        .await;
        self.upload(
            on,
            &confirm,
            "",
            Mode::Delta,
            &format!("{confirm}-import"),
            &both,
        )
        .await;
        let import = self.named("import_to_confirm");
        self.upload(on, &confirm, "", Mode::Replace, &import, &both[..1])
            .await;
        for name in ["import_to_abort", "import_open"] {
            let open = json!({ "open": {
                "workspace": self.get("workspace"), "partner": self.get("partner"),
                "cohort_id": cohort, "mode": "IMPORT_MODE_DELTA", "import_id": self.named(name),
            } });
            on.operator("muster.ingest.v1.IngestService/IngestCohort", open)
                .await;
        }
    }

    async fn upload(
        &self,
        on: &Deployment,
        cohort: &str,
        name: &str,
        mode: Mode,
        import: &str,
        users: &[String],
    ) -> Outcome {
        let (workspace, partner) = (self.get("workspace"), self.get("partner"));
        let mut upload = Upload::new(workspace, partner, cohort, mode, import);
        upload.name = name.to_owned();
        if mode == Mode::Replace {
            upload.max_removed_fraction = Some(0.0);
        }
        let users = users.iter().cloned();
        let users: Vec<_> = users
            .map(|id| (Effect::Add, IdentifierRef::external_id(&id).to_owned()))
            .collect();
        let source = move || Ok(users.clone().into_iter().map(Ok));
        let uploaded = upload.run(&on.muster.operator, source, &mut |_| {}).await;
        uploaded.unwrap()
    }

    async fn make_segments(&mut self, on: &Deployment) {
        let workspace = self.get("workspace");
        let filter = format!("{}:id(\"{}\")", self.get("partner"), self.get("cohort"));
        for (id, name) in [
            ("segment", "segment_name"),
            ("used_segment", "used_segment_name"),
            ("segment_to_archive", "segment_to_archive_name"),
        ] {
            let request = json!({
                "workspace": workspace, "name": self.named(name), "filter": { "text": filter },
            });
            let rpc = "muster.segments.v1.SegmentService/CreateSegment";
            let made = on.operator(rpc, request).await;
            self.set(id, &text(&made["segment"]["segmentId"]));
        }
        for (resolution, resume_token) in [
            ("resolution", "resume_token"),
            ("later_resolution", "later_resume_token"),
        ] {
            let request = json!({
                "workspace": workspace, "segment": { "segment_id": self.get("segment") },
                "view": "AUDIENCE_VIEW_FULL",
            });
            let rpc = "muster.segments.v1.SegmentService/ResolveSegment";
            let answer = on.call(rpc, &request, &on.muster.operator_token).await;
            let of = |name: &str| answer.messages.iter().find_map(|message| message.get(name));
            let header = of("header").unwrap();
            self.set(resolution, &text(&header["resolution"]["resolutionId"]));
            self.set(resume_token, &text(&of("batch").unwrap()["resumeToken"]));
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
