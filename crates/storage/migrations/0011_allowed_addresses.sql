-- Where a credential may be used from. Builds that do not know it accept it from everywhere, as
-- before, so they may go on until all are replaced; restrict credentials after that.

ALTER TABLE credential ADD COLUMN allowed_addresses cidr[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN credential.allowed_addresses IS 'Networks that it is accepted from; none means from everywhere.';
