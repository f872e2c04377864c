//! What one would keep in Redis: a set of ids a cohort, in memory only, matched with nobody.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{Failure, Result, muster::check};

/// Members of a command: with so many Redis is about as fast as it gets.
const MEMBERS_A_COMMAND: usize = 1_000;

/// A server of its own, on a socket of its own.
pub(crate) struct Redis {
    server: Child,
    answers: BufReader<OwnedReadHalf>,
    commands: OwnedWriteHalf,
    _directory: TempDir,
}

impl Redis {
    /// Starts one; `None` where there is no `redis-server`.
    pub(crate) async fn start() -> Result<Option<Self>> {
        let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
        let socket = directory.path().join("redis.sock");
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(&socket)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            started => started?,
        };
        match connect(socket).await {
            Ok(stream) => {
                let (answers, commands) = stream.into_split();
                Ok(Some(Self {
                    server,
                    answers: BufReader::with_capacity(1 << 20, answers),
                    commands,
                    _directory: directory,
                }))
            }
            Err(error) => {
                server.kill()?;
                server.wait()?;
                Err(error)
            }
        }
    }

    /// Adds ids to a set, without waiting for answers in between.
    pub(crate) async fn add(&mut self, set: &str, ids: &[String]) -> Result<Duration> {
        let mut text = Vec::new();
        let chunks = ids.chunks(MEMBERS_A_COMMAND);
        let count = chunks.len();
        for ids in chunks {
            let words = ["SADD", set].into_iter();
            encode(
                &mut text,
                words.chain(ids.iter().map(String::as_str)),
                ids.len() + 2,
            );
        }
        let begun = Instant::now();
        let (commands, answers) = (&mut self.commands, &mut self.answers);
        let send = async { commands.write_all(&text).await.map_err(Failure::from) };
        let receive = async {
            let mut added = 0;
            for _ in 0..count {
                added += number(answers, b':').await?;
            }
            Result::Ok(added)
        };
        let ((), added) = tokio::try_join!(send, receive)?;
        let took = begun.elapsed();
        check("ids added to Redis", added, ids.len() as u64)?;
        Ok(took)
    }

    /// Counts whoever is in one set and not in another.
    pub(crate) async fn count(&mut self, one: &str, other: &str) -> Result<(u64, Duration)> {
        let begun = Instant::now();
        self.command(&["SDIFFSTORE", "difference", one, other])
            .await?;
        let count = number(&mut self.answers, b':').await?;
        Ok((count, begun.elapsed()))
    }

    /// Reads them.
    pub(crate) async fn read(&mut self, one: &str, other: &str) -> Result<(u64, Duration)> {
        let begun = Instant::now();
        self.command(&["SDIFF", one, other]).await?;
        let count = number(&mut self.answers, b'*').await?;
        let mut id = Vec::new();
        for _ in 0..count {
            let length = usize::try_from(number(&mut self.answers, b'$').await?)?;
            id.resize(length + 2, 0);
            self.answers.read_exact(&mut id).await?;
        }
        Ok((count, begun.elapsed()))
    }

    async fn command(&mut self, words: &[&str]) -> Result<()> {
        let mut text = Vec::new();
        encode(&mut text, words.iter().copied(), words.len());
        Ok(self.commands.write_all(&text).await?)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

async fn connect(socket: PathBuf) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(&socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(format!("redis-server does not answer: {error}").into());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn encode<'a>(text: &mut Vec<u8>, words: impl Iterator<Item = &'a str>, count: usize) {
    text.extend(format!("*{count}\r\n").bytes());
    for word in words {
        text.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
}

/// Reads a line that is a number, after what says of which sort.
async fn number(answers: &mut BufReader<OwnedReadHalf>, sort: u8) -> Result<u64> {
    let mut line = String::new();
    answers.read_line(&mut line).await?;
    match line.as_bytes().first() {
        Some(first) if *first == sort => Ok(line[1..].trim_end().parse()?),
        _ => Err(format!("Redis answers {line:?}").into()),
    }
}
