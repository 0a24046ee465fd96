export type {
  ConversationTurn,
  DataFinding,
  DecodedImage,
  GenerateRequest,
  GenerationDefaults,
  GenerationPiece,
  GenerationStart,
  LoadOptions,
  Preprocessing,
  RgbFrame,
  TrainingBatch,
  TrainingFailure,
  TrainingSample,
  TrainingStep,
} from './binding.js';
export { callNative, callNativeAsync } from './call-native.js';
export {
  Cancellation,
  conversationStop,
  conversationTemplates,
  DataCheck,
  Device,
  decodeImage,
  errorCodes,
  LanguageModel,
  PixelChannel,
  Pixels,
  planTraining,
  publishedData,
  renderConversation,
  Session,
  TokenGenerator,
  TrainingRun,
  VisualEncoder,
  VisualFeatures,
  VisualTokens,
} from './handles.js';
export { memoryUsage } from './memory-usage.js';
export { nativeHandle } from './native-handle.js';
export { withCancellation } from './with-cancellation.js';
