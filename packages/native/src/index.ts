export type {
  ConversationTurn,
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
  WorldQuestion,
  WorldVideoOptions,
} from './binding.js';
export { callNative, callNativeAsync } from './call-native.js';
export {
  Cancellation,
  conversationStop,
  conversationTemplates,
  DataList,
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
  WorldVideo,
} from './handles.js';
export { memoryUsage } from './memory-usage.js';
export { nativeHandle } from './native-handle.js';
export { withCancellation } from './with-cancellation.js';
