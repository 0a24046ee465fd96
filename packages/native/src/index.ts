export type {
  ConversationTurn,
  DecodedImage,
  GenerateRequest,
  GenerationDefaults,
  GenerationPiece,
  GenerationStart,
  LoadOptions,
  MovieQuestion,
  Preprocessing,
  PromptTokens,
  RgbFrame,
  Subtitle,
  Subtitles,
} from './binding.js';
export { callNative, callNativeAsync } from './call-native.js';
export {
  Cancellation,
  checkSubtitles,
  conversationStop,
  conversationTemplates,
  Device,
  decodeImage,
  errorCodes,
  LanguageModel,
  ModelDescription,
  movieQuestion,
  PixelChannel,
  Pixels,
  parseSubtitles,
  renderConversation,
  Session,
  TokenGenerator,
  VisualEncoder,
  VisualFeatures,
  VisualTokens,
} from './handles.js';
export { memoryUsage } from './memory-usage.js';
export { nativeHandle } from './native-handle.js';
export { withCancellation } from './with-cancellation.js';
