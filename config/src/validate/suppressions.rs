//! `postern.dev/suppress`: warnings that a document does not want to hear. Errors cannot be suppressed.
use crate::{
    documents::{
        parse::{Node, shorten},
        report::Report,
        schema::nearest,
    },
    problem::{self, Code, Levels},
};

/// The annotation: codes, separated by commas or spaces.
const SUPPRESS: &str = "postern.dev/suppress";

/// The codes that a document suppresses.
pub fn suppressed(node: &Node) -> Vec<&'static str> {
    let mut codes: Vec<&'static str> =
        words(node).filter_map(|(_, word)| suppressible(word)).map(|code| code.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

/// Words of the annotation that suppress nothing.
pub fn check(report: &mut Report<'_>, node: &Node) {
    for (at, word) in words(node).filter(|(_, word)| suppressible(word).is_none()) {
        if report.is_full() {
            return;
        }
        let (reason, hint) = match problem::explain(word) {
            Some(code) => (
                format!("{} ({}) is an error, and errors cannot be suppressed", code.code, code.title),
                "repair what it names, and remove the code".to_owned(),
            ),
            None => {
                let known = problem::CODES.iter().filter(|code| code.levels != Levels::Error);
                let hint = match nearest(word, known.map(|code| code.code)) {
                    Some(near) => format!("did you mean {near}? docs/errors.md lists all codes"),
                    None => "docs/errors.md lists all codes".to_owned(),
                };
                (format!("`{}` is no code of Postern, so that it suppresses nothing", shorten(word)), hint)
            }
        };
        report.warning(problem::BAD_SUPPRESSION, at.place, reason, hint);
    }
}

fn suppressible(word: &str) -> Option<&'static Code> {
    problem::explain(word).filter(|code| code.levels != Levels::Error)
}

fn words(node: &Node) -> impl Iterator<Item = (&Node, &str)> {
    let list = node.at("metadata.annotations").and_then(|annotations| annotations.get(SUPPRESS));
    list.into_iter().flat_map(|node| {
        let text = node.text().unwrap_or_default();
        text.split([',', ' ', '\n', '\t']).filter(|word| !word.is_empty()).map(move |word| (node, word))
    })
}
