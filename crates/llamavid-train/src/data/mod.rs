//! From records in LLaVA's format to samples: ids, labels, questions for the query model, and what to look at.
