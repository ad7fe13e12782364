//! Progress of long work, in the shapes of Docker's JSON message stream.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// One message: an object of the newline-separated JSON stream that `docker pull` and
/// `docker load` print.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressMessage {
    /// A line of free text that ends with a newline (`docker load`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// What is going on: `Downloading`, `Pull complete`…
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// How far it is; an empty object where Docker sends one.
    #[serde(default, rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub detail: Option<ProgressDetail>,
    /// The bar as text, for clients that print it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What it is about: twelve digits of a layer's digest, or a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A failure after the stream began.
    #[serde(default, rename = "errorDetail", skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ErrorDetail>,
    /// The same failure for old clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// A result for programs (`docker push`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aux: Option<serde_json::Value>,
}

/// How far something is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressDetail {
    /// Bytes done.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub current: u64,
    /// Bytes in all; 0 if unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub total: u64,
}

/// The text of a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The whole chain of causes.
    pub message: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants a reference.
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl ProgressMessage {
    /// A status about nothing in particular.
    #[must_use]
    pub fn status(status: impl Into<String>) -> Self {
        Self { status: Some(status.into()), ..Self::default() }
    }

    /// A status of `id` without a bar.
    #[must_use]
    pub fn of(id: &str, status: &str) -> Self {
        Self {
            status: Some(status.into()),
            id: Some(id.into()),
            detail: Some(ProgressDetail::default()),
            ..Self::default()
        }
    }

    /// A status of `id` with a bar.
    #[must_use]
    pub fn bar(id: &str, status: &str, current: u64, total: u64) -> Self {
        Self {
            detail: Some(ProgressDetail { current, total }),
            progress: Some(bar_text(current, total)),
            ..Self::of(id, status)
        }
    }

    /// A line of text.
    #[must_use]
    pub fn line(text: &str) -> Self {
        Self { stream: Some(format!("{text}\n")), ..Self::default() }
    }

    /// A failure after the stream began; `message` is the whole chain.
    #[must_use]
    pub fn failure(message: String) -> Self {
        Self {
            error: Some(message.clone()),
            error_detail: Some(ErrorDetail { message }),
            ..Self::default()
        }
    }
}

/// Width of the bar in characters, as Docker draws it on a wide terminal.
const BAR_WIDTH: u64 = 50;

fn bar_text(current: u64, total: u64) -> String {
    let current = if total > 0 { current.min(total) } else { current };
    if total == 0 {
        return format!("{:>8}", size_text(current));
    }
    let filled = usize::try_from(u128::from(current) * u128::from(BAR_WIDTH) / u128::from(total))
        .unwrap_or(0);
    let rest = usize::try_from(BAR_WIDTH).unwrap_or(0).saturating_sub(filled);
    let tip = if rest > 0 { ">" } else { "" };
    format!(
        "[{}{tip}{}] {:>8}/{}",
        "=".repeat(filled),
        " ".repeat(rest.saturating_sub(1)),
        size_text(current),
        size_text(total)
    )
}

/// A size in decimal units with at most four digits, as Docker's clients print it: `1.234MB`.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    // A size above 2^53 loses its last digits here, which four printed digits do not show.
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if unit == 0 || v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let mut text = format!("{value:.decimals$}");
    if text.contains('.') {
        text = text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text.push_str(UNITS.get(unit).copied().unwrap_or("B"));
    text
}

/// Where messages go. Cheap to clone; a receiver that was dropped is no error, because nobody wants
/// the messages then.
#[derive(Clone, Debug, Default)]
pub struct Progress(Option<mpsc::Sender<ProgressMessage>>);

/// Messages that may wait for a slow reader. Bars beyond it are left out, statuses wait.
const WAITING_MESSAGES: usize = 256;

impl Progress {
    /// Drops every message.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// A bounded channel. Read it to its end, or drop it: work waits while it is full.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<ProgressMessage>) {
        let (sender, receiver) = mpsc::channel(WAITING_MESSAGES);
        (Self(Some(sender)), receiver)
    }

    /// Sends a message that the reader must see.
    pub(crate) async fn tell(&self, message: ProgressMessage) {
        if let Some(sender) = &self.0 {
            // Ignored because: a reader that went away wants no messages.
            let _ = sender.send(message).await;
        }
    }

    /// Like [`Self::tell`], from a thread that may block.
    pub(crate) fn tell_blocking(&self, message: ProgressMessage) {
        if let Some(sender) = &self.0 {
            // Ignored because: a reader that went away wants no messages.
            let _ = sender.blocking_send(message);
        }
    }

    /// Sends a bar; left out when the reader is slow.
    pub(crate) fn hint(&self, message: ProgressMessage) {
        if let Some(sender) = &self.0 {
            // Ignored because: the next bar says the same and more.
            let _ = sender.try_send(message);
        }
    }

    /// Whether anybody reads.
    pub(crate) fn wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|sender| !sender.is_closed())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_have_dockers_shape() {
        let check = |message: ProgressMessage, wanted: &str| {
            assert_eq!(serde_json::to_string(&message).unwrap(), wanted);
        };
        check(
            ProgressMessage::of("0123456789ab", "Pull complete"),
            r#"{"status":"Pull complete","progressDetail":{},"id":"0123456789ab"}"#,
        );
        check(ProgressMessage::line("Loaded image: a:b"), r#"{"stream":"Loaded image: a:b\n"}"#);
        check(ProgressMessage::status("Digest: x"), r#"{"status":"Digest: x"}"#);
        check(
            ProgressMessage::failure("no".into()),
            r#"{"errorDetail":{"message":"no"},"error":"no"}"#,
        );
    }

    #[test]
    fn sizes_are_decimal_with_four_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (4_261_550, "4.262MB"),
            (72_034_000, "72.03MB"),
            (123_456_789, "123.5MB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
    }

    #[test]
    fn bars_fill_up() {
        assert!(bar_text(0, 100).starts_with("[>"));
        assert!(bar_text(100, 100).contains(&"=".repeat(50)));
        assert!(bar_text(500, 100).contains("100B/100B"));
    }
}
