export { type ConversationTurn, conversationTemplates } from '@llamavid/llm';
export type { MediaSource, SamplingReport } from '@llamavid/video';
export type {
  Answer,
  AnswerModel,
  AnswerResult,
  AnswerTimings,
  AnswerUsage,
  AnswerWork,
  AskOptions,
} from './answer.js';
export { Chat, type SendOptions } from './chat.js';
export { Clip, type OpenOptions } from './clip.js';
export { LlamaVid, type LoadOptions } from './llama-vid.js';
