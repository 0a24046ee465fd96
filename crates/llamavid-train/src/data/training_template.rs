//! Conversation templates as training uses them: what is learned, and what the query model is asked.

use llamavid_models::prompt::conversation::{SeparatorStyle, Template};

use super::error::{Error, Result};

/// What the query model is asked while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guidance {
    /// Nothing: the templates of models without a query model.
    None,
    /// The questions of the record. In a chat, later questions get a tag of their own, so that there is a place for
    /// the visual tokens made with them.
    Questions,
}

/// A conversation template, checked for training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingTemplate {
    pub(super) template: Template,
    pub(super) guidance: Guidance,
}

impl TrainingTemplate {
    /// The template of that name; `plain_guided` and `imgsp_v1` are those of the released models.
    ///
    /// # Errors
    /// An unknown name.
    pub fn by_name(name: &str) -> Result<Self> {
        let template = Template::by_name(name)
            .map_err(|error| Error::Template { name: name.to_owned(), problem: error.to_string() })?;
        let guidance = match name {
            "plain_guided" | "imgsp_v1" => Guidance::Questions,
            _ => Guidance::None,
        };
        Self::new(template.clone(), guidance)
    }

    /// A template of one's own.
    ///
    /// # Errors
    /// A separator style without a rule for its labels, a missing second separator, or guidance where only chats
    /// with two separators and plain pairs have it.
    pub fn new(template: Template, guidance: Guidance) -> Result<Self> {
        let refused = |problem: &str| {
            Err(Error::Template { name: template.name.to_string(), problem: problem.to_owned() })
        };
        match (template.style, guidance) {
            (SeparatorStyle::Mpt, _) => return refused("there is no rule for the labels of its style"),
            (SeparatorStyle::Two | SeparatorStyle::Llama2, _) if template.second_separator.is_none() => {
                return refused("its style needs a second separator");
            }
            (SeparatorStyle::Single | SeparatorStyle::Llama2, Guidance::Questions) => {
                return refused("its style has no form with questions for the query model");
            }
            _ => {}
        }
        Ok(Self { template, guidance })
    }

    /// The template.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// What the query model is asked.
    pub fn guidance(&self) -> Guidance {
        self.guidance
    }
}
