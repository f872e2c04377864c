//! Who may call what: one row for every rpc. An rpc without a row is refused, and a test holds the
//! table against the contract.

use std::fmt;

use muster_domain::error::Error;

/// What a service token may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// See data import keys and integrations.
    KeysRead,
    /// Create, rotate and revoke data import keys.
    KeysWrite,
    /// Create workspaces, partners and their keys, enable partners, manage service tokens.
    IntegrationsWrite,
    /// Find users.
    UsersRead,
    /// Change the directory.
    UsersWrite,
    /// See cohorts and imports.
    CohortsRead,
    /// Import, name and archive cohorts.
    CohortsWrite,
    /// See segments, count them, check membership.
    SegmentsRead,
    /// Change segments.
    SegmentsWrite,
    /// Read audiences: who exactly is in a segment.
    AudiencesRead,
    /// Read the audit trail.
    AuditRead,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 11] = [
        Self::KeysRead,
        Self::KeysWrite,
        Self::IntegrationsWrite,
        Self::UsersRead,
        Self::UsersWrite,
        Self::CohortsRead,
        Self::CohortsWrite,
        Self::SegmentsRead,
        Self::SegmentsWrite,
        Self::AudiencesRead,
        Self::AuditRead,
    ];

    /// Its name on the wire and in storage.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeysRead => "keys:read",
            Self::KeysWrite => "keys:write",
            Self::IntegrationsWrite => "integrations:write",
            Self::UsersRead => "users:read",
            Self::UsersWrite => "users:write",
            Self::CohortsRead => "cohorts:read",
            Self::CohortsWrite => "cohorts:write",
            Self::SegmentsRead => "segments:read",
            Self::SegmentsWrite => "segments:write",
            Self::AudiencesRead => "audiences:read",
            Self::AuditRead => "audit:read",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The scopes of a service token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scopes {
    /// Everything, written `*`.
    All,
    /// These.
    Only(Vec<Scope>),
}

impl Scopes {
    /// Reads scopes by name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the first that is unknown, or if there are none.
    pub fn parse(names: &[String]) -> Result<Self, Error> {
        if names.iter().any(|name| name == "*") {
            return Ok(Self::All);
        }
        if names.is_empty() {
            return Err(Error::field("scopes", "must hold at least one scope"));
        }
        let known = |name: &String| {
            let scope = Scope::ALL.into_iter().find(|scope| scope.as_str() == name);
            scope.ok_or_else(|| {
                let all = Scope::ALL.map(Scope::as_str).join(", ");
                Error::field("scopes", format!("{name:?} is not one of *, {all}"))
            })
        };
        Ok(Self::Only(
            names.iter().map(known).collect::<Result<_, _>>()?,
        ))
    }

    /// Whether they include one.
    pub fn contain(&self, scope: Scope) -> bool {
        match self {
            Self::All => true,
            Self::Only(scopes) => scopes.contains(&scope),
        }
    }

    /// Whether they include all of the others.
    pub fn cover(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(_), Self::Only(others)) => others.iter().all(|&scope| self.contain(scope)),
        }
    }
}

/// Who may call one rpc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The rpc, as `/package.Service/Method`.
    pub rpc: &'static str,
    /// The scope a service token needs.
    pub scope: Scope,
    /// Whether a data import key will do, within its workspace and partner.
    pub data_import_key: bool,
}

const fn token(rpc: &'static str, scope: Scope) -> Rule {
    Rule {
        rpc,
        scope,
        data_import_key: false,
    }
}

const fn token_or_key(rpc: &'static str, scope: Scope) -> Rule {
    Rule {
        rpc,
        scope,
        data_import_key: true,
    }
}

/// One row for every rpc of the contract.
pub const AUTHORIZATION: &[Rule] = &[
    token("/muster.keys.v1.KeyService/CreateKey", Scope::KeysWrite),
    token("/muster.keys.v1.KeyService/GetKey", Scope::KeysRead),
    token("/muster.keys.v1.KeyService/ListKeys", Scope::KeysRead),
    token("/muster.keys.v1.KeyService/RevokeKey", Scope::KeysWrite),
    token("/muster.keys.v1.KeyService/RestrictKey", Scope::KeysWrite),
    token("/muster.keys.v1.KeyService/RotateKey", Scope::KeysWrite),
    token(
        "/muster.keys.v1.IntegrationService/CreateWorkspace",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/ListWorkspaces",
        Scope::KeysRead,
    ),
    token(
        "/muster.keys.v1.IntegrationService/CreatePartner",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/ListPartners",
        Scope::KeysRead,
    ),
    token(
        "/muster.keys.v1.IntegrationService/EnablePartner",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/DisablePartner",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/CreatePartnerApiKey",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/ListPartnerApiKeys",
        Scope::KeysRead,
    ),
    token(
        "/muster.keys.v1.IntegrationService/RevokePartnerApiKey",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/GetIntegration",
        Scope::KeysRead,
    ),
    token(
        "/muster.keys.v1.IntegrationService/CreateServiceToken",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/ListServiceTokens",
        Scope::KeysRead,
    ),
    token(
        "/muster.keys.v1.IntegrationService/RestrictServiceToken",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/RevokeServiceToken",
        Scope::IntegrationsWrite,
    ),
    token(
        "/muster.keys.v1.IntegrationService/ListAuditEvents",
        Scope::AuditRead,
    ),
    token(
        "/muster.users.v1.UserService/ImportUsers",
        Scope::UsersWrite,
    ),
    token(
        "/muster.users.v1.UserService/UpsertUsers",
        Scope::UsersWrite,
    ),
    token(
        "/muster.users.v1.UserService/IdentifyUsers",
        Scope::UsersWrite,
    ),
    token("/muster.users.v1.UserService/MergeUsers", Scope::UsersWrite),
    token(
        "/muster.users.v1.UserService/DeleteUsers",
        Scope::UsersWrite,
    ),
    token("/muster.users.v1.UserService/FindUser", Scope::UsersRead),
    token_or_key(
        "/muster.ingest.v1.IngestService/IngestCohort",
        Scope::CohortsWrite,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/UpsertCohort",
        Scope::CohortsWrite,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/GetCohort",
        Scope::CohortsRead,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/ListCohorts",
        Scope::CohortsRead,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/ListCohortVersions",
        Scope::CohortsRead,
    ),
    token(
        "/muster.ingest.v1.IngestService/ArchiveCohort",
        Scope::CohortsWrite,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/GetImport",
        Scope::CohortsRead,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/ListImports",
        Scope::CohortsRead,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/ListRejectedIdentifiers",
        Scope::CohortsRead,
    ),
    // A person decides, not the partner whose list looked wrong.
    token(
        "/muster.ingest.v1.IngestService/ConfirmImport",
        Scope::CohortsWrite,
    ),
    token_or_key(
        "/muster.ingest.v1.IngestService/AbortImport",
        Scope::CohortsWrite,
    ),
    token(
        "/muster.segments.v1.SegmentService/CreateSegment",
        Scope::SegmentsWrite,
    ),
    token(
        "/muster.segments.v1.SegmentService/GetSegment",
        Scope::SegmentsRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/ListSegments",
        Scope::SegmentsRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/UpdateSegment",
        Scope::SegmentsWrite,
    ),
    token(
        "/muster.segments.v1.SegmentService/ArchiveSegment",
        Scope::SegmentsWrite,
    ),
    token(
        "/muster.segments.v1.SegmentService/CountSegment",
        Scope::SegmentsRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/CountFilters",
        Scope::SegmentsRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/ResolveSegment",
        Scope::AudiencesRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/GetResolution",
        Scope::SegmentsRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/ListResolutions",
        Scope::SegmentsRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/DiffResolutions",
        Scope::AudiencesRead,
    ),
    token(
        "/muster.segments.v1.SegmentService/CheckMembership",
        Scope::SegmentsRead,
    ),
];

/// The rule for an rpc, if it is one of ours.
pub fn rule(rpc: &str) -> Option<&'static Rule> {
    AUTHORIZATION.iter().find(|rule| rule.rpc == rpc)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    #[test]
    fn every_rpc_of_the_contract_has_exactly_one_rule() {
        let set =
            prost_types::FileDescriptorSet::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut contract = BTreeSet::new();
        for file in set.file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    contract.insert(format!("/{package}.{service}/{}", method.name()));
                }
            }
        }
        let table: BTreeSet<String> = AUTHORIZATION.iter().map(|r| r.rpc.to_owned()).collect();
        assert_eq!(table, contract);
        assert_eq!(table.len(), AUTHORIZATION.len());
    }

    #[test]
    fn nobody_can_grant_more_than_they_hold() {
        let few = Scopes::parse(&["keys:read".to_owned()]).unwrap();
        let all = Scopes::parse(&["*".to_owned()]).unwrap();
        assert!(all.cover(&few) && all.cover(&all) && few.cover(&few));
        assert!(!few.cover(&all));
        assert!(Scopes::parse(&["keys".to_owned()]).is_err());
        assert!(Scopes::parse(&[]).is_err());
    }
}
