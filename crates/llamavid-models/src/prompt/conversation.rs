//! Conversation templates: how turns of a chat become one text.
//!
//! Reference: `conversation.py`.

use std::borrow::Cow;

use super::placeholders::{IMAGE_END, IMAGE_START, IMAGE_TAG};
use crate::tokenizer::strip;
use crate::{Error, Result};

/// A question and, but for the last, its answer.
pub type Turn = (String, Option<String>);

/// How messages are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeparatorStyle {
    /// `role: message` and one separator behind each.
    Single,
    /// `role: message`, one separator behind questions and another behind answers.
    Two,
    /// Role and message without a colon.
    Mpt,
    /// Messages alone.
    Plain,
    /// `[INST]` around questions.
    Llama2,
}

/// Where the tag of a first message's picture goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaPlacement {
    /// On a line in front of the text.
    OwnLine,
    /// In a turn of its own, which the assistant confirms.
    OwnTurn,
}

/// A conversation template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// What it is asked for by.
    pub name: Cow<'static, str>,
    /// The text in front of the first message.
    pub system: Cow<'static, str>,
    /// Who asks and who answers.
    pub roles: [Cow<'static, str>; 2],
    /// How messages are put together.
    pub style: SeparatorStyle,
    /// Stands behind messages; behind questions if there is a second one.
    pub separator: Cow<'static, str>,
    /// Stands behind answers.
    pub second_separator: Option<Cow<'static, str>>,
    /// Where the tag of a first message's picture goes.
    pub media: MediaPlacement,
}

const CURIOUS_HUMAN: &str = "A chat between a curious human and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the human's questions.";
const CURIOUS_USER: &str = "A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions.";

const fn template(
    name: &'static str,
    system: &'static str,
    roles: [&'static str; 2],
    style: SeparatorStyle,
    separator: &'static str,
    second_separator: Option<&'static str>,
) -> Template {
    let [asks, answers] = roles;
    Template {
        name: Cow::Borrowed(name),
        system: Cow::Borrowed(system),
        roles: [Cow::Borrowed(asks), Cow::Borrowed(answers)],
        style,
        separator: Cow::Borrowed(separator),
        second_separator: match second_separator {
            Some(separator) => Some(Cow::Borrowed(separator)),
            None => None,
        },
        media: MediaPlacement::OwnLine,
    }
}

/// The templates of the released models. `imgsp_v1` and `plain_guided` are those of training.
pub static TEMPLATES: [Template; 5] = [
    template("llava_v0", CURIOUS_HUMAN, ["Human", "Assistant"], SeparatorStyle::Single, "###", None),
    template("llava_v1", CURIOUS_HUMAN, ["USER", "ASSISTANT"], SeparatorStyle::Two, " ", Some("</s>")),
    template("vicuna_v1", CURIOUS_USER, ["USER", "ASSISTANT"], SeparatorStyle::Two, " ", Some("</s>")),
    template("imgsp_v1", CURIOUS_USER, ["USER", "ASSISTANT"], SeparatorStyle::Two, " ", Some("</s>")),
    template("plain_guided", "", ["", ""], SeparatorStyle::Plain, "\n", None),
];

impl Template {
    /// The template of that name among [`TEMPLATES`].
    pub fn by_name(name: &str) -> Result<&'static Self> {
        TEMPLATES.iter().find(|template| template.name == name).ok_or_else(|| {
            let known: Vec<&str> = TEMPLATES.iter().map(|template| template.name.as_ref()).collect();
            Error::Prompt(format!(
                "there is no conversation template `{name}`, there are {}",
                known.join(", ")
            ))
        })
    }

    /// The text of the turns. A missing or empty answer leaves the text open for the model to go on.
    pub fn render(&self, turns: &[Turn]) -> Result<String> {
        let messages = turns.iter().flat_map(|(question, answer)| [Some(question), answer.as_ref()]);
        let messages =
            messages.map(|message| message.map(String::as_str).filter(|message| !message.is_empty()));
        let mut text = match self.style {
            SeparatorStyle::Single | SeparatorStyle::Two | SeparatorStyle::Mpt => {
                format!("{}{}", self.system, self.separator)
            }
            SeparatorStyle::Plain => self.system.to_string(),
            SeparatorStyle::Llama2 => String::new(),
        };
        for (index, message) in messages.enumerate() {
            let is_question = index % 2 == 0;
            let [asks, answers] = &self.roles;
            let role = if is_question { asks } else { answers };
            match (self.style, message) {
                (SeparatorStyle::Single | SeparatorStyle::Two, Some(message)) => {
                    text.extend([role, ": ", message, self.separator_behind(is_question)?]);
                }
                (SeparatorStyle::Single | SeparatorStyle::Two, None) => text.extend([role, ":"]),
                (SeparatorStyle::Mpt, Some(message)) => text.extend([role, message, &self.separator]),
                (SeparatorStyle::Mpt, None) => text.push_str(role),
                (SeparatorStyle::Plain, Some(message)) => {
                    text.extend([message, self.separator_behind(is_question)?]);
                }
                (SeparatorStyle::Llama2, None) if index == 0 => {
                    return Err(Error::Prompt(format!(
                        "template `{}`: the first question is empty",
                        self.name
                    )));
                }
                (SeparatorStyle::Llama2, Some(message)) if is_question => {
                    text.extend([&*self.separator, "[INST] "]);
                    if index == 0 {
                        text.extend(["<<SYS>>\n", &*self.system, "\n<</SYS>>\n\n"]);
                    }
                    text.extend([message, " [/INST]"]);
                }
                (SeparatorStyle::Llama2, Some(message)) => {
                    text.extend([" ", message, " ", self.separator_behind(is_question)?]);
                }
                (SeparatorStyle::Plain | SeparatorStyle::Llama2, None) => {}
            }
        }
        if self.style == SeparatorStyle::Llama2 {
            // The reference strips the separator's characters, in any order, from the start.
            let kept = text.trim_start_matches(|character| self.separator.contains(character)).len();
            text.drain(..text.len() - kept);
        }
        Ok(text)
    }

    /// The turns of a conversation whose first question carries a picture: its tag leaves the text and
    /// goes where the template wants it.
    pub fn turns_with_media(&self, turns: &[Turn]) -> Vec<Turn> {
        let mut turns = turns.to_vec();
        if let Some((question, _)) = turns.first_mut() {
            let bare = question.replace(IMAGE_TAG, "");
            let bare = strip(&bare);
            match self.media {
                MediaPlacement::OwnLine => *question = format!("{IMAGE_TAG}\n{bare}"),
                MediaPlacement::OwnTurn => {
                    *question = bare.to_owned();
                    let tag = format!("<Image>{IMAGE_TAG}</Image>");
                    turns.insert(0, (tag, Some("Received.".into())));
                }
            }
        }
        turns
    }

    /// The text that ends an answer.
    pub fn stop(&self) -> &str {
        match (self.style, &self.second_separator) {
            (SeparatorStyle::Two, Some(separator)) => separator,
            _ => &self.separator,
        }
    }

    fn separator_behind(&self, is_question: bool) -> Result<&str> {
        match (self.style, &self.second_separator) {
            (SeparatorStyle::Single, _) => Ok(&self.separator),
            (_, _) if is_question => Ok(&self.separator),
            (_, Some(separator)) => Ok(separator),
            (_, None) => Err(Error::Prompt(format!("template `{}` has no place for an answer", self.name))),
        }
    }
}

/// How a question carries its media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageTag {
    /// `<image>` alone.
    Bare,
    /// Between `<im_start>` and `<im_end>` (`mm_use_im_start_end`).
    StartEnd,
}

/// The question with the tag of its media on a line in front, as inference asks it.
pub fn question_with_media(question: &str, tag: ImageTag) -> String {
    match tag {
        ImageTag::Bare => format!("{IMAGE_TAG}\n{question}"),
        ImageTag::StartEnd => format!("{IMAGE_START}{IMAGE_TAG}{IMAGE_END}\n{question}"),
    }
}
