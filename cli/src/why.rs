//! `postern why`: a question about a folder of YAML, or about a denial of a running mesh.

use crate::{authority::Where, live::decision, policy::formats::Output, policy::why};
use clap::Args;

/// Flags of `postern why`.
#[derive(Args, Debug, Clone)]
pub struct WhyArgs {
    #[command(flatten)]
    question: why::QuestionArgs,
    /// Ask a running mesh instead why this call was denied: the id is in the answer's body, in the access log and in
    /// `postern denials -o json`
    #[arg(long, value_name = "DECISION", conflicts_with_all = ["from", "to", "method", "path", "folder"])]
    id: Option<String>,
    #[command(flatten)]
    place: Where,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command. About a folder: 0 allowed, 2 denied, 1 when the question cannot be answered. About a denial: 0 with the answer, 1
/// when nobody knows it.
pub fn run(args: &WhyArgs) -> u8 {
    match &args.id {
        Some(id) => decision::run(id, args.output, &args.place),
        None => why::run(&args.question, args.output),
    }
}
