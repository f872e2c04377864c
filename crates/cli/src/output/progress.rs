//! Progress of long commands: a bar on a terminal, plain lines elsewhere, nothing for programs.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Output, grouped, remark};

/// How often a plain line is written.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Progress of a command that works through a file.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Which file, where there are several.
    name: String,
    what: &'static str,
    started: Instant,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Bar(ProgressBar),
    Lines { last: Instant },
    Silent,
}

impl Progress {
    /// Begins; `what` is counted, and `total_bytes` is the size of the file where it is known.
    pub(crate) fn start(output: Output, what: &'static str, total_bytes: Option<u64>) -> Self {
        let started = Instant::now();
        let form = if output.is_json() {
            Form::Silent
        } else if io::stderr().is_terminal() {
            Form::Bar(bar(total_bytes))
        } else {
            Form::Lines { last: started }
        };
        Self {
            name: String::new(),
            what,
            started,
            form,
        }
    }

    /// Begins one of several that run side by side.
    pub(crate) fn among(
        bars: &MultiProgress,
        output: Output,
        name: &str,
        what: &'static str,
    ) -> Self {
        let mut progress = Self::start(output, what, None);
        if let Form::Bar(single) = &progress.form {
            single.finish_and_clear();
            progress.form = Form::Bar(bars.add(bar(Some(0))));
        }
        progress.name = format!("{name}: ");
        progress
    }

    /// Says how large the file is, once that is known.
    pub(crate) fn set_total(&mut self, bytes: u64) {
        if let Form::Bar(bar) = &self.form {
            bar.set_length(bytes);
        }
    }

    /// Says how many are done, and how many bytes of the file that took.
    pub(crate) fn update(&mut self, done: u64, bytes: u64) {
        let text = format!(
            "{}{} {} ({}/s)",
            self.name,
            grouped(&done),
            self.what,
            grouped(&rate(done, self.started.elapsed()))
        );
        match &mut self.form {
            Form::Bar(bar) => {
                bar.set_position(bytes);
                bar.set_message(text);
            }
            Form::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                remark(&text);
            }
            Form::Lines { .. } | Form::Silent => {}
        }
    }
}

impl Drop for Progress {
    /// Clears the bar, so that whatever is printed next begins on an empty line.
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

fn bar(total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{bar:30} {percent:>3} %  {msg}  {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    // The template is fixed; the default style is an honest fallback.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// How many a second, as a whole number.
pub(crate) fn rate(done: u64, elapsed: Duration) -> u64 {
    let milliseconds = elapsed.as_millis().max(1);
    u64::try_from(u128::from(done) * 1_000 / milliseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_never_divide_by_zero() {
        assert_eq!(rate(1_000, Duration::from_millis(500)), 2_000);
        assert_eq!(rate(0, Duration::ZERO), 0);
    }
}
