export { type RelevantFrames, relevantMoments } from './moments.js';
export { type GenerateOptions, type LoadOptions, TokenGenerator } from './token-generator.js';
export { VisualTokens } from './visual-tokens.js';
