export { Conversation, type ConversationTurn, conversation, conversationTemplates } from './conversation.js';
export { type DeviceDescription, describeDevice } from './device.js';
export { type GenerationDefaults, LanguageModel, type LoadOptions } from './language-model.js';
export { describeModel, type ModelDescription } from './model-description.js';
export {
  checkGenerateOptions,
  type GenerateOptions,
  type Generation,
  type GenerationResult,
  type GenerationTimings,
  type GenerationUsage,
  Session,
} from './session.js';
export {
  checkSubtitles,
  type Movie,
  movieInputs,
  movieQuestion,
  parseSubtitles,
  readSubtitleStream,
  type StreamCue,
  type Subtitle,
  type Subtitles,
} from './subtitles.js';
export { TextStream } from './text-stream.js';
