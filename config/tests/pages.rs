//! Each YAML block of the pages about policy is a file that is read here: it has no findings, or exactly those that the
//! comment before the block names (`<!-- finds PST0505 -->`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use postern_config::documents::{self, SourceFile};
use std::{fs, path::Path};

const PAGES: &[&str] = &["policy.md", "cookbook.md", "traffic.md", "telemetry.md"];

struct Block {
    line: usize,
    text: String,
    finds: Vec<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut found, mut finds, mut open) = (Vec::new(), Vec::<String>::new(), None);
    for (number, line) in page.lines().enumerate() {
        if let Some(comment) = line.strip_prefix("<!-- finds ") {
            let codes = comment.trim_end_matches(" -->").split([',', ' ']).filter(|code| !code.is_empty());
            finds = codes.map(str::to_owned).collect();
            finds.sort();
        } else if line == "```yaml" {
            open = Some(Block { line: number + 1, text: String::new(), finds: std::mem::take(&mut finds) });
        } else if line == "```" {
            found.extend(open.take());
        } else if let Some(block) = &mut open {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    found
}

#[test]
fn every_example_of_the_pages_has_the_findings_that_it_names_and_no_others() {
    let mut seen = 0;
    for page in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
        for block in blocks(&fs::read_to_string(&path).unwrap()) {
            seen += 1;
            let file = SourceFile { name: format!("{page}:{}", block.line), text: block.text };
            let (_, problems) = documents::read(&[file]);
            let mut codes: Vec<&str> = problems.iter().map(|p| p.code).collect();
            codes.sort_unstable();
            codes.dedup();
            let shown: String = problems.iter().map(|p| format!("{p}\n\n")).collect();
            assert_eq!(codes, block.finds, "{page}, block of line {}\n{shown}", block.line);
        }
    }
    assert!(seen >= 12, "{seen} examples");
}
