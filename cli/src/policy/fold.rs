//! Paths to templates: a segment in which too many different values stand becomes `{*}`.
use postern_config::matchers::PathTemplate;
use std::collections::{BTreeMap, BTreeSet};

/// Which pattern stands for each path: itself, or a template that is sure to match it. A place in which more than
/// `threshold` different segments stand, behind the same beginning, is folded.
pub fn fold(paths: &BTreeSet<String>, threshold: usize) -> BTreeMap<String, String> {
    let (plain, odd): (Vec<&String>, Vec<&String>) = paths.iter().partition(|path| is_foldable(path));
    let split: Vec<(&String, Vec<&str>)> =
        plain.iter().map(|path| (*path, path.split('/').skip(1).collect())).collect();
    let mut folded = BTreeMap::new();
    descend(&split.iter().collect::<Vec<_>>(), 0, "", threshold, &mut folded);
    folded.extend(odd.into_iter().map(|path| (path.clone(), path.clone())));
    for (path, pattern) in &mut folded {
        let fits = PathTemplate::parse(pattern).is_ok_and(|template| template.matches(path));
        if pattern.contains("{*}") && !fits {
            pattern.clone_from(path);
        }
    }
    folded
}

/// Begins with a slash and has no empty segment but the last.
fn is_foldable(path: &str) -> bool {
    path.starts_with('/') && !path.contains("//") && !path.contains(['{', '}'])
}

type Split<'a> = (&'a String, Vec<&'a str>);

fn descend(
    paths: &[&Split<'_>],
    depth: usize,
    prefix: &str,
    threshold: usize,
    folded: &mut BTreeMap<String, String>,
) {
    let mut children: BTreeMap<&str, Vec<&Split<'_>>> = BTreeMap::new();
    for path in paths {
        match path.1.get(depth) {
            Some(segment) => children.entry(segment).or_default().push(path),
            None => {
                folded.insert(path.0.clone(), prefix.to_owned());
            }
        }
    }
    // A trailing slash is an empty last segment, which `{*}` does not stand for.
    if let Some(ended) = children.remove("") {
        descend(&ended, depth + 1, &format!("{prefix}/"), threshold, folded);
    }
    if children.len() > threshold {
        let all: Vec<&Split<'_>> = children.into_values().flatten().collect();
        return descend(&all, depth + 1, &format!("{prefix}/{{*}}"), threshold, folded);
    }
    for (segment, below) in children {
        descend(&below, depth + 1, &format!("{prefix}/{segment}"), threshold, folded);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(paths: &[&str], threshold: usize, expected: &[&str]) {
        let paths: BTreeSet<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        let folded = fold(&paths, threshold);
        assert_eq!(folded.len(), paths.len());
        let patterns: BTreeSet<&str> = folded.values().map(String::as_str).collect();
        assert_eq!(patterns, expected.iter().copied().collect(), "{paths:?}");
    }

    #[test]
    fn segments_fold_above_the_threshold_and_not_at_it() {
        for (paths, threshold, expected) in [
            (&["/a", "/b"][..], 2, &["/a", "/b"][..]),
            (&["/a", "/b", "/c"], 2, &["/{*}"]),
            (&["/u/1", "/u/2", "/u/3", "/v"], 2, &["/u/{*}", "/v"]),
            (&["/u/1/x", "/u/2/x", "/u/3/y"], 2, &["/u/{*}/x", "/u/{*}/y"]),
            (&["/u/", "/u/1", "/u/2"], 1, &["/u/", "/u/{*}"]),
            (&["/u/1/", "/u/2/"], 1, &["/u/{*}/"]),
            (&["/"], 1, &["/"]),
            (&["/a//b", "*", "/x{y"], 0, &["/a//b", "*", "/x{y"]),
        ] {
            check(paths, threshold, expected);
        }
    }

    #[test]
    fn a_path_that_its_template_would_not_match_stays_as_it_is() {
        check(&["/u/1", "/u/2", "/u/a|b"], 2, &["/u/{*}", "/u/a|b"]);
        check(&["/[u]/1", "/[u]/2"], 1, &["/[u]/1", "/[u]/2"]);
    }
}
