//! `muster users`: the directory.

mod csv;
mod import;

pub(crate) use csv::fuzz as fuzz_csv;

use muster_proto::users::v1::{self as pb, Identifier};
use serde_json::{Value, json};

use crate::{
    error::{CliError, Result},
    identifier::{self, UserRef},
    output::{self, Noun},
    session::{Session, request_id},
};

/// Users that one call may change.
const MAX_ENTRIES: usize = 1_000;

/// The verbs of `muster users`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Users {
    Import(import::ImportArgs),
    /// Find one user
    Find {
        /// external_id=ID or a bare ID, alias:LABEL=NAME, device_id=ID, or user_no=N
        #[arg(value_name = "USER", value_parser = identifier::parse_user)]
        user: UserRef,
    },
    /// Give an anonymous user an external id; it keeps its cohorts, its devices match nobody then
    Identify {
        /// The anonymous user: alias:LABEL=NAME or device_id=ID
        #[arg(value_name = "USER", value_parser = identifier::parse_identifier)]
        user: Identifier,
        /// The external id to give it
        #[arg(value_name = "EXTERNAL_ID")]
        external_id: String,
    },
    /// Merge a user into another, who is then in every cohort either was in
    Merge {
        /// The user that ends: external_id=ID or a bare ID, alias:LABEL=NAME or device_id=ID
        #[arg(value_name = "FROM", value_parser = identifier::parse_identifier)]
        from: Identifier,
        /// The user that survives, in the same form
        #[arg(value_name = "INTO", value_parser = identifier::parse_identifier)]
        into: Identifier,
    },
    /// Erase users for good: their identifiers are gone from everywhere
    Delete {
        /// The users: external_id=ID or a bare ID, alias:LABEL=NAME or device_id=ID
        #[arg(value_name = "USER", required = true, value_parser = identifier::parse_identifier)]
        users: Vec<Identifier>,
    },
}

impl Users {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Import(args) => import::run(session, args).await,
            Self::Find { user } => find(session, user).await,
            Self::Identify { user, external_id } => identify(session, user, external_id).await,
            Self::Merge { from, into } => merge(session, from, into).await,
            Self::Delete { users } => delete(session, users).await,
        }
    }
}

async fn find(session: &Session, user: UserRef) -> Result<()> {
    use pb::find_user_request::User;
    let by_number = matches!(user, UserRef::UserNo(_));
    let request = pb::FindUserRequest {
        workspace: session.workspace()?,
        user: Some(match user {
            UserRef::Identifier(identifier) => User::Identifier(identifier),
            UserRef::UserNo(number) => User::UserNo(number),
        }),
    };
    let mut client = session.connection.users();
    let found = session
        .call(async || client.find_user(request.clone()).await)
        .await?;
    if by_number && !session.output.is_json() {
        // Only of an identifier there is something to say about what imports match.
        let mut json = found.json();
        json["matched_by_imports"] = Value::Null;
        let table = output::details(pb::FindUserResponse::COLUMNS, &json);
        return session.output.text(&table);
    }
    session.output.show(&found)
}

async fn identify(session: &Session, user: Identifier, external_id: String) -> Result<()> {
    let subject = identifier::text(&user);
    let request = pb::IdentifyUsersRequest {
        workspace: session.workspace()?,
        entries: vec![pb::identify_users_request::Entry {
            user: Some(user),
            external_id,
        }],
        request_id: request_id(),
    };
    let mut client = session.connection.users();
    let answer = session
        .call(async || client.identify_users(request.clone()).await)
        .await?;
    let mut report = Report::default();
    report.add(&[subject], &answer.results, answer.consistency_token)?;
    report.print(session)
}

async fn merge(session: &Session, from: Identifier, into: Identifier) -> Result<()> {
    let subject = identifier::text(&from);
    let request = pb::MergeUsersRequest {
        workspace: session.workspace()?,
        entries: vec![pb::merge_users_request::Entry {
            from: Some(from),
            into: Some(into),
        }],
        request_id: request_id(),
    };
    let mut client = session.connection.users();
    let answer = session
        .call(async || client.merge_users(request.clone()).await)
        .await?;
    let mut report = Report::default();
    report.add(&[subject], &answer.results, answer.consistency_token)?;
    report.print(session)
}

async fn delete(session: &Session, users: Vec<Identifier>) -> Result<()> {
    let mut client = session.connection.users();
    let mut report = Report::default();
    for users in users.chunks(MAX_ENTRIES) {
        let request = pb::DeleteUsersRequest {
            workspace: session.workspace()?,
            users: users.to_vec(),
            request_id: request_id(),
        };
        let deleted = session
            .call(async || client.delete_users(request.clone()).await)
            .await;
        let added = deleted.and_then(|answer| {
            let subjects: Vec<_> = users.iter().map(identifier::text).collect();
            report.add(&subjects, &answer.results, answer.consistency_token)
        });
        if let Err(error) = added {
            // What was erased before stays erased, so it has to be told as well.
            if !report.rows.is_empty() {
                let _ = report.print(session);
            }
            return Err(error);
        }
    }
    report.print(session)
}

/// What became of the users named on the command line.
#[derive(Debug, Default)]
struct Report {
    rows: Vec<Value>,
    consistency_token: String,
    refused: bool,
}

impl Report {
    /// Adds the results of one call about `subjects`, by position.
    fn add(
        &mut self,
        subjects: &[String],
        results: &[pb::UserResult],
        consistency_token: String,
    ) -> Result<()> {
        if results.len() != subjects.len() {
            return Err(CliError::Failed(format!(
                "the server answered for {} of {} users",
                results.len(),
                subjects.len()
            )));
        }
        for (subject, result) in subjects.iter().zip(results) {
            let mut row = json!({ "user": subject });
            let fields = result.json();
            for name in ["outcome", "user_no", "detail"] {
                row[name] = fields[name].clone();
            }
            self.rows.push(row);
            self.refused |= matches!(
                result.outcome(),
                pb::UserOutcome::Conflict | pb::UserOutcome::Invalid | pb::UserOutcome::NotFound
            );
        }
        self.consistency_token = consistency_token;
        Ok(())
    }

    /// Prints them; an error if any was refused.
    fn print(&self, session: &Session) -> Result<()> {
        if session.output.is_json() {
            session.output.json(&json!({
                "results": self.rows,
                "consistency_token": self.consistency_token,
            }))?;
        } else {
            let mut columns = vec![output::col("user")];
            columns.extend(pb::UserResult::COLUMNS);
            let table = output::table_rows(&columns, &self.rows);
            session.output.text(&table)?;
            output::remark(&format!("consistency token: {}", self.consistency_token));
        }
        if self.refused {
            return Err(CliError::Partial);
        }
        Ok(())
    }
}
