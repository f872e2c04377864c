//! The lower half of the parser: characters, words and strings.

use super::{ParseError, Parsed, Parser};

impl<'t> Parser<'t> {
    /// A string, if a quote comes next.
    pub(super) fn accept_string(&mut self) -> Parsed<Option<String>> {
        let start = self.skip_space();
        if !self.accept('"') {
            return Ok(None);
        }
        let mut text = String::new();
        loop {
            let at = self.at;
            match self.next() {
                Some('"') => return Ok(Some(text)),
                Some('\\') => text.push(self.escaped().ok_or_else(|| {
                    self.error_at(
                        at,
                        r#"the escapes are \" \\ \n \t and \u{…} with a code point"#,
                    )
                })?),
                Some(c) => text.push(c),
                None => return Err(self.error_at(start, "this quote is never closed")),
            }
        }
    }

    /// The rest of an escape; none if there is no such escape.
    fn escaped(&mut self) -> Option<char> {
        match self.next()? {
            c @ ('"' | '\\') => Some(c),
            'n' => Some('\n'),
            't' => Some('\t'),
            'u' => {
                let (digits, rest) = self.rest().strip_prefix('{')?.split_once('}')?;
                // `from_str_radix` alone would take a sign.
                if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return None;
                }
                self.at = self.text.len() - rest.len();
                char::from_u32(u32::from_str_radix(digits, 16).ok()?)
            }
            _ => None,
        }
    }

    /// Takes the word if it comes next and is not a partner, which a `:` follows.
    pub(super) fn accept_keyword(&mut self, keyword: &str) -> bool {
        let start = self.skip_space();
        if self.accept_word().eq_ignore_ascii_case(keyword) && !self.rest().starts_with(':') {
            return true;
        }
        self.at = start;
        false
    }

    /// Takes all letters, digits, `-` and `_` that come next, which may be none.
    pub(super) fn accept_word(&mut self) -> &'t str {
        self.skip_space();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'));
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    pub(super) fn accept(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    pub(super) fn expect(&mut self, wanted: char, message: impl FnOnce() -> String) -> Parsed<()> {
        if self.accept(wanted) {
            Ok(())
        } else {
            Err(self.error(message()))
        }
    }

    /// The next character that is not white space.
    pub(super) fn peek(&mut self) -> Option<char> {
        self.skip_space();
        self.rest().chars().next()
    }

    pub(super) fn skip_space(&mut self) -> usize {
        self.at = self.text.len() - self.rest().trim_start().len();
        self.at
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest().chars().next()?;
        self.at += next.len_utf8();
        Some(next)
    }

    pub(super) fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ParseError {
        self.error_at(self.at, message)
    }

    pub(super) fn error_at(&self, at: usize, message: impl Into<String>) -> ParseError {
        ParseError {
            position: self.column(at),
            message: message.into(),
        }
    }

    pub(super) fn column(&self, at: usize) -> usize {
        self.text[..at].chars().count() + 1
    }
}
