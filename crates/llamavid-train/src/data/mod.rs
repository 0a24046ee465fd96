//! From records in LLaVA's format to samples: ids, labels, questions for the query model, and what to look at.

use llamavid_models::prompt::splice::SpliceKind;

/// One record, tokenised.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The record's id.
    pub id: String,
    /// Ids, with a placeholder for each image.
    pub ids: Vec<i64>,
    /// What is to be learned at each id; [`IGNORED`] where nothing is.
    pub labels: Vec<i64>,
    /// The questions for the query model.
    pub prompts: Vec<String>,
    /// What a placeholder stands for.
    pub splice: SpliceKind,
}

/// The label of a position that is not learned.
pub const IGNORED: i64 = -100;
