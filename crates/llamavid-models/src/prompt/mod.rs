//! Conversation templates, placeholders and the long-video prompt.
