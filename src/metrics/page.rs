//! The page to look at: one document with all that it needs. Its script asks for `/status.json` every two seconds.

use super::Answer;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Nothing is loaded or run but what the page brings along, known by its SHA-256; nobody is asked but this server.
const POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; \
     img-src data:; style-src 'sha256-wTAWOQdl1V5aI4TM38qGB2YNgFs0OznK/von0JT8O1o='; \
     script-src 'sha256-mmxhC1IxjK8Q3MMapb3QdmoOQIBhYMUHc00GHbM3hw8='";

pub(super) fn page() -> Answer {
    Answer {
        fields: format!("Content-Security-Policy: {POLICY}\r\nReferrer-Policy: no-referrer\r\n"),
        ..Answer::ok(
            "text/html; charset=utf-8",
            PAGE.replace("{style}", STYLE).replace("{script}", SCRIPT),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_the_style_or_the_script_before_its_end_or_has_text_be_markup() {
        assert!(!STYLE.contains("</") && !SCRIPT.contains("</") && !SCRIPT.contains("<!--"));
        for parses in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval",
            "Function(",
            "srcdoc",
            "document.write",
        ] {
            assert!(!SCRIPT.contains(parses), "{parses}");
        }
    }
}
