export { type ConversationTurn, conversationTemplates, type Subtitle } from '@llamavid/llm';
export type { MediaSource, SamplingReport } from '@llamavid/video';
export { defaultStore, parseBytes, type StoredVideo, VideoStore } from '@llamavid/vision';
export type {
  Answer,
  AnswerModel,
  AnswerResult,
  AnswerTimings,
  AnswerUsage,
  AnswerWork,
  AskOptions,
  EvaluationOptions,
} from './answer.js';
export { Chat, type ChatOptions, type SendOptions } from './chat.js';
export { Clip, type OpenOptions } from './clip.js';
export { type ContextFit, overflow } from './context-fit.js';
export { type EncodedVideo, type EncodeVideosOptions, encodeVideos } from './encode-videos.js';
export type { StoreOptions } from './encoding.js';
export { bytesText, formatText, refuseWhatCannotFit } from './fitting.js';
export { LlamaVid, type LoadOptions } from './llama-vid.js';
export { LookedSource } from './looked-source.js';
export { extractMovies, type MovieFeatures, type MovieFeaturesOptions } from './movie-features.js';
export type { MediaPlan, PlanOptions } from './plan.js';
export { type PreviewOptions, type PromptPreview, previewPrompt } from './preview.js';
export { Profile, type ProfileSummary, type ProfileTrace, type TraceEvent } from './profile.js';
export type { Gpu, PlannedSetting, RunPlan, WeightFormat } from './run-plan.js';
export type { SpeechOptions } from './speech.js';
export type { SubtitleReport, SubtitleSource } from './subtitles.js';
export { type Moment, type Timeline, timelineToVtt } from './timeline.js';
