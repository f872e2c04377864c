//! Whatever belongs to another workspace answers as what does not exist: in words, and in what is
//! asked of the database, which is what takes time.

use muster_tests::{PARTNER, WORKSPACE};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    requests::{About, ROWS, Row},
    statements::{self, Statements},
    wire::{self, Answer},
    world::{Deployment, RIVAL, World},
};

/// What stands for a way to name something of one's own choice, not a thing that exists.
const CHOSEN: &[&str] = &["fresh", "request", "partner", "spare_partner"];

/// A call that names something of another's, and its twin that names nothing.
struct Twins<'a> {
    on: &'a Deployment,
    row: &'a Row,
    own: &'a World,
    bearer: &'a str,
    heard: Statements,
}

impl Twins<'_> {
    /// What is wrong with how a call with another's things compares to one with nothing's.
    async fn compare(
        &self,
        foreign: &[(&str, &str)],
        nothing: &[(&str, &str)],
        mark: &str,
    ) -> Option<String> {
        let mut complaint = None;
        // The servers tidy up now and then, and some calls create what they name: the second time
        // both twins meet the same.
        for _ in 0..4 {
            let (theirs, cost) = self.call(foreign).await;
            let (none, cost_of_nothing) = self.call(nothing).await;
            let said = (theirs.code, &theirs.reason, &theirs.message);
            complaint = if said != (none.code, &none.reason, &none.message) {
                Some(format!("{theirs:?} is not {none:?}"))
            } else if theirs
                .messages
                .iter()
                .any(|message| message.to_string().contains(mark))
            {
                Some(format!("tells of {mark}: {theirs:?}"))
            } else if cost != cost_of_nothing {
                Some(format!("{cost:#?} is not {cost_of_nothing:#?}"))
            } else {
                return None;
            };
        }
        complaint.map(|complaint| format!("{} with {foreign:?}: {complaint}", self.row.rpc))
    }

    /// Calls; the answer does not have what was named in it.
    async fn call(&self, except: &[(&str, &str)]) -> (Answer, Vec<String>) {
        let request = self.row.request(self.own, except);
        self.heard.take();
        let mut answer = self.on.call(self.row.rpc, &request, self.bearer).await;
        let cost = self.heard.take();
        assert!(!cost.is_empty(), "the credential at least is looked up");
        for (_, value) in except {
            answer.message = answer.message.replace(value, "…");
            for message in &mut answer.messages {
                let text = message.to_string().replace(value, "…");
                *message = serde_json::from_str(&text).unwrap();
            }
        }
        (answer, cost)
    }
}

#[tokio::test]
async fn another_workspace_s_things_answer_like_nothing() {
    let heard = statements::listen();
    let on = Deployment::start().await;
    let shop = World::make(&on, WORKSPACE, PARTNER).await;
    let rival = World::make(&on, RIVAL, PARTNER).await;
    let nothing = World::of_nothing(&shop);
    let bound = on.token(WORKSPACE, &["*"]).await.secret;
    let key = on.key(WORKSPACE, PARTNER).await.secret;
    let mark = rival.mark();
    let mut wrong = Vec::new();
    let mut compared = 0;
    let operator = on.muster.operator_token.clone();
    for row in ROWS.iter().filter(|row| row.about != About::Deployment) {
        let names = row.names();
        let things = names.iter().filter(|name| !CHOSEN.contains(name));
        for bearer in [&bound, &key, &operator] {
            if *bearer == key && !row.key {
                continue;
            }
            let on = &on;
            let (own, heard) = (&shop, heard.clone());
            let twins = Twins {
                on,
                row,
                own,
                bearer,
                heard,
            };
            // Each thing alone, in one's own workspace.
            for &name in things.clone().filter(|name| **name != "workspace") {
                if row.about == About::Thing && *bearer == operator {
                    continue;
                }
                let (theirs, none) = (rival.get(name), nothing.get(name));
                let told = twins
                    .compare(&[(name, &theirs)], &[(name, &none)], &mark)
                    .await;
                wrong.extend(told);
                compared += 1;
            }
            // Everything at once, in the other workspace. The operator may see that one.
            if *bearer != operator && row.about == About::Workspace {
                let all = |world: &World| -> Vec<(&str, String)> {
                    things
                        .clone()
                        .map(|name| (*name, world.get(name)))
                        .collect()
                };
                let (theirs, none) = (all(&rival), all(&nothing));
                let [theirs, none] = [&theirs, &none].map(|all| {
                    let pairs = all.iter().map(|(name, value)| (*name, value.as_str()));
                    pairs.collect::<Vec<_>>()
                });
                wrong.extend(twins.compare(&theirs, &none, &mark).await);
                compared += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    println!("{compared} pairs of calls");
    on.muster.stop().await;
}

#[tokio::test]
async fn another_workspace_s_page_tokens_open_nothing() {
    let on = Deployment::start().await;
    let shop = World::make(&on, WORKSPACE, PARTNER).await;
    let rival = World::make(&on, RIVAL, PARTNER).await;
    let bound = on.token(WORKSPACE, &["*"]).await.secret;
    let mut lists = 0;
    for row in ROWS.iter().filter(|row| row.about == About::Workspace) {
        let rpc = wire::rpc(row.rpc).unwrap();
        if rpc.input().get_field_by_name("page_token").is_none() {
            continue;
        }
        lists += 1;
        let theirs = on.operator(row.rpc, row.request(&rival, &[])).await;
        let token = theirs["nextPageToken"].as_str().unwrap_or_default();
        if token.is_empty()
            && ROWS
                .iter()
                .any(|other| other.rpc == row.rpc && other.request != row.request)
        {
            // Of one thing; the other row lists all.
            continue;
        }
        assert!(!token.is_empty(), "{} has one page only", row.rpc);
        let mut request = row.request(&shop, &[]);
        request["page_token"] = token.into();
        let answer = on.call(row.rpc, &request, &bound).await;
        assert_eq!(answer.code, Code::Ok, "{}: {answer:?}", row.rpc);
        let told = Value::from(answer.messages).to_string();
        assert!(!told.contains(RIVAL), "{}: {told}", row.rpc);
        request["page_token"] = json!("made-up");
        let answer = on.call(row.rpc, &request, &bound).await;
        assert_eq!(answer.reason, "INVALID_FIELD", "{}: {answer:?}", row.rpc);
    }
    assert!(lists >= 7, "the contract has more lists than {lists}");
    on.muster.stop().await;
}
