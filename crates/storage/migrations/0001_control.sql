-- Control tables: who may do what. These few are the only ones with keys that span workspaces.

CREATE TABLE workspace (
    workspace_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT workspace_pkey PRIMARY KEY,
    slug text COLLATE "C" NOT NULL CONSTRAINT workspace_slug_unique UNIQUE,
    display_name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE workspace IS 'A company''s tenant; every row elsewhere belongs to one.';
COMMENT ON COLUMN workspace.slug IS 'Name on the wire; never changes.';

CREATE TABLE partner (
    partner text COLLATE "C" CONSTRAINT partner_pkey PRIMARY KEY,
    display_name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE partner IS 'An audience-building tool that pushes cohorts, by slug.';

CREATE TABLE workspace_partner (
    workspace_id bigint NOT NULL,
    partner text COLLATE "C" NOT NULL,
    enabled_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT workspace_partner_pkey PRIMARY KEY (workspace_id, partner),
    CONSTRAINT workspace_partner_workspace_fkey FOREIGN KEY (workspace_id) REFERENCES workspace (workspace_id),
    CONSTRAINT workspace_partner_partner_fkey FOREIGN KEY (partner) REFERENCES partner (partner)
);
COMMENT ON TABLE workspace_partner IS 'The partners a workspace has enabled; a missing row means not enabled.';

CREATE TABLE credential (
    credential_id uuid CONSTRAINT credential_pkey PRIMARY KEY,
    kind smallint NOT NULL,
    workspace_id bigint CONSTRAINT credential_workspace_fkey REFERENCES workspace (workspace_id),
    partner text COLLATE "C" CONSTRAINT credential_partner_fkey REFERENCES partner (partner),
    scopes text[] NOT NULL DEFAULT '{}',
    label text NOT NULL,
    digest bytea NOT NULL CONSTRAINT credential_digest_unique UNIQUE,
    hint text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    replaced_by uuid,
    last_used_at timestamptz,
    CONSTRAINT credential_binding_check CHECK (
        CASE kind
            WHEN 1 THEN partner IS NULL
            WHEN 2 THEN workspace_id IS NOT NULL AND partner IS NOT NULL
            WHEN 3 THEN workspace_id IS NULL AND partner IS NOT NULL
            ELSE false
        END
    ),
    CONSTRAINT credential_digest_check CHECK (octet_length(digest) = 32)
);
CREATE INDEX credential_workspace_index ON credential (workspace_id, kind, credential_id);
CREATE INDEX credential_partner_index ON credential (partner, kind, credential_id);
COMMENT ON TABLE credential IS 'Service tokens, data import keys and partner API keys; the secret itself is kept nowhere.';
COMMENT ON COLUMN credential.credential_id IS 'UUIDv7, so that ids sort by creation.';
COMMENT ON COLUMN credential.kind IS '1 service token, 2 data import key, 3 partner API key.';
COMMENT ON COLUMN credential.workspace_id IS 'The only workspace it works for; null: every workspace (service token), or none (partner API key).';
COMMENT ON COLUMN credential.scopes IS 'What a service token may do; ''*'' is everything. Empty for the other kinds.';
COMMENT ON COLUMN credential.digest IS 'SHA-256 of the whole secret.';
COMMENT ON COLUMN credential.hint IS 'The recognisable ends of the secret, for people.';
COMMENT ON COLUMN credential.replaced_by IS 'The credential that a rotation put in its place.';
COMMENT ON COLUMN credential.last_used_at IS 'Kept to about a minute, so that reads do not become writes.';

CREATE TABLE audit_event (
    event_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_event_pkey PRIMARY KEY,
    workspace_id bigint,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    resource text NOT NULL
);
CREATE INDEX audit_event_workspace_index ON audit_event (workspace_id, event_id);
COMMENT ON TABLE audit_event IS 'Who changed what about credentials and integrations, written in the transaction of the change.';
COMMENT ON COLUMN audit_event.workspace_id IS 'The workspace concerned; null for the whole deployment.';

CREATE TABLE request_log (
    workspace_id bigint NOT NULL,
    actor text NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea NOT NULL,
    response bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT request_log_pkey PRIMARY KEY (workspace_id, actor, method, request_id)
);
CREATE INDEX request_log_created_index ON request_log (created_at);
COMMENT ON TABLE request_log IS 'Answers to mutations by request id, kept for 24 hours, so that a repeated call changes nothing.';
COMMENT ON COLUMN request_log.workspace_id IS '0 for calls that concern the whole deployment.';
COMMENT ON COLUMN request_log.fingerprint IS 'SHA-256 of the request: the same id with another request is refused.';
COMMENT ON COLUMN request_log.response IS 'The encoded answer, without secrets; null only inside the transaction that makes it.';
