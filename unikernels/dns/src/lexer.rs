//! Cuts a zone file into entries: lines, or several where parentheses join them.

use alloc::vec::Vec;

use crate::parser::Problem;

/// A word or a quoted string, its escapes still in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// Without the quotes.
    pub text: &'a [u8],
    /// Whether it was quoted.
    pub quoted: bool,
}

/// One entry of a zone file.
#[derive(Debug, Default)]
pub(crate) struct Entry<'a> {
    /// Its words; never none.
    pub tokens: Vec<Token<'a>>,
    /// The line that it begins in, from 1.
    pub line: u32,
    /// Whether the line begins with blank space: the owner is then the one before.
    pub indented: bool,
}

/// Goes through a zone file.
#[derive(Debug)]
pub(crate) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, line: 1 }
    }

    /// The line that is being read, from 1.
    pub(crate) fn line(&self) -> u32 {
        self.line
    }

    /// Reads the next entry into `entry`; false at the end.
    pub(crate) fn next(&mut self, entry: &mut Entry<'a>) -> Result<bool, Problem> {
        loop {
            entry.tokens.clear();
            entry.line = self.line;
            entry.indented = matches!(self.text.get(self.at), Some(b' ' | b'\t'));
            let more = self.entry(entry)?;
            if !entry.tokens.is_empty() {
                return Ok(true);
            }
            if !more {
                return Ok(false);
            }
        }
    }

    /// Reads up to the end of a line outside of parentheses; false at the end of the text.
    fn entry(&mut self, entry: &mut Entry<'a>) -> Result<bool, Problem> {
        let mut depth = 0_u32;
        while let Some(byte) = self.text.get(self.at) {
            match byte {
                b'\n' => {
                    self.at += 1;
                    self.line += 1;
                    if depth == 0 {
                        return Ok(true);
                    }
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b';' => self.skip_comment(),
                b'(' => {
                    depth += 1;
                    self.at += 1;
                }
                b')' => {
                    depth = depth.checked_sub(1).ok_or(Problem::Unopened)?;
                    self.at += 1;
                }
                b'"' => entry.tokens.push(self.quoted()?),
                _ => {
                    if entry.tokens.is_empty() {
                        entry.line = self.line;
                    }
                    entry.tokens.push(self.word());
                }
            }
        }
        if depth > 0 { Err(Problem::Unclosed) } else { Ok(false) }
    }

    fn skip_comment(&mut self) {
        while self.text.get(self.at).is_some_and(|byte| *byte != b'\n') {
            self.at += 1;
        }
    }

    fn quoted(&mut self) -> Result<Token<'a>, Problem> {
        let start = self.at + 1;
        let mut at = start;
        loop {
            match self.text.get(at) {
                None | Some(b'\n') => return Err(Problem::Unquoted),
                Some(b'"') => break,
                Some(b'\\') if self.text.get(at + 1).is_some_and(|next| *next != b'\n') => at += 2,
                Some(_) => at += 1,
            }
        }
        self.at = at + 1;
        Ok(Token { text: &self.text[start..at], quoted: true })
    }

    fn word(&mut self) -> Token<'a> {
        let start = self.at;
        let mut at = start;
        while let Some(byte) = self.text.get(at) {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'(' | b')' | b'"' => break,
                // An escaped line end is not part of a word.
                b'\\' if self.text.get(at + 1).is_some_and(|next| *next != b'\n') => at += 2,
                _ => at += 1,
            }
        }
        self.at = at;
        Token { text: &self.text[start..at], quoted: false }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use alloc::string::{String, ToString};

    /// Entries as `line indent word|word|"quoted"`.
    fn check(text: &str, expected: &[&str]) {
        let mut lexer = Lexer::new(text.as_bytes());
        let mut entry = Entry::default();
        let mut found: Vec<String> = Vec::new();
        loop {
            match lexer.next(&mut entry) {
                Ok(false) => break,
                Err(problem) => {
                    found.push(alloc::format!("{}: {problem}", lexer.line()));
                    break;
                }
                Ok(true) => {}
            }
            let words: Vec<String> = entry
                .tokens
                .iter()
                .map(|token| {
                    let text = core::str::from_utf8(token.text).unwrap();
                    if token.quoted { alloc::format!("\"{text}\"") } else { text.to_string() }
                })
                .collect();
            let mark = if entry.indented { "+" } else { "" };
            found.push(alloc::format!("{}{mark} {}", entry.line, words.join("|")));
        }
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn entries_are_cut() {
        check("", &[]);
        check("\n ; only this\n\n", &[]);
        check("a b\n c ; d\ne", &["1 a|b", "2+ c", "3 e"]);
        check("a ( b ; x\n c\n) d\ne f", &["1 a|b|c|d", "4 e|f"]);
        check("a \"b ; (c\" d", &["1 a|\"b ; (c\"|d"]);
        check(r#"a "b \" c" "" d\;e"#, &[r#"1 a|"b \" c"|""|d\;e"#]);
        check("a\r\nb\r\n", &["1 a", "2 b"]);
        check("a((b))c", &["1 a|b|c"]);
    }

    #[test]
    fn what_is_left_open_is_said() {
        check("a (\nb\n", &["3: a parenthesis is not closed"]);
        check("a )", &["1: a parenthesis is closed that is not open"]);
        check("a \"b\nc\"", &["1: a quoted string does not end in its line"]);
        check("a \"b\\", &["1: a quoted string does not end in its line"]);
        check("a\\", &["1 a\\"]);
    }
}
