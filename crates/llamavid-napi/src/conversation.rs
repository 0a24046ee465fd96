//! Conversation templates.

use llamavid_runtime::{TEMPLATES, Template, Turn};
use napi_derive::napi;

use crate::promise::call;

/// A question and, but for the newest, its answer.
#[napi(object, object_to_js = false)]
pub struct ConversationTurn {
    /// With an `<image>` where visual tokens go.
    pub question: String,
    /// Absent: the model is to write it.
    pub answer: Option<String>,
}

/// The names of the templates.
#[napi]
pub fn conversation_templates() -> Vec<String> {
    TEMPLATES.iter().map(|template| template.name.to_string()).collect()
}

/// The prompt of all turns.
#[napi]
pub fn render_conversation(template: String, turns: Vec<ConversationTurn>) -> napi::Result<String> {
    let turns: Vec<Turn> = turns.into_iter().map(|turn| (turn.question, turn.answer)).collect();
    call(|| Ok(Template::by_name(&template)?.render(&turns)?))
}

/// The text that ends an answer.
#[napi]
pub fn conversation_stop(template: String) -> napi::Result<String> {
    call(|| Ok(Template::by_name(&template)?.stop().to_owned()))
}
