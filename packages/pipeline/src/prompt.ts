import {
  type Conversation,
  type ConversationTurn,
  type ModelDescription,
  movieQuestion,
  type Subtitle,
} from '@llamavid/llm';

/** What a prompt shows of one video or picture. */
export interface Shown {
  subtitles: readonly Subtitle[] | undefined;
  /** The text with an `<image>` for each frame instead, where features came with it. */
  inputs?: string | undefined;
  /** Seconds, rising. */
  frameTimes: readonly number[];
  tokensPerFrame: number;
}

export interface Prompt {
  text: string;
  /** What an `<image>` of the text stands for: all tokens of a video, or one. */
  layout: 'per-placeholder' | 'per-token';
}

/** Tokens of a prompt that shows `shown`: all, and the visual ones among them. */
export function countTokens(
  description: ModelDescription,
  prompt: Prompt,
  shown: readonly Shown[],
): { promptTokens: number; visualTokens: number } {
  const visualTokens = shown.reduce((sum, { frameTimes, tokensPerFrame }) => {
    return sum + frameTimes.length * tokensPerFrame;
  }, 0);
  const { promptTokens, places } = description.countPromptTokens(prompt.text);
  return { promptTokens: promptTokens - places + visualTokens, visualTokens };
}

/** The template of a question for which nobody named one: the model's, else that of the reference's own script. */
export function usualTemplate(model: string | undefined, hasSubtitles: boolean): string {
  return model ?? (hasSubtitles ? 'vicuna_v1' : 'llava_v1');
}

/**
 * The prompt of a question about what is shown, in order; that stands in front of the last question, or of the `first` one. With
 * subtitles each visual token has a place of its own, so that words can stand between frames.
 */
export function writePrompt(
  template: Conversation,
  history: readonly ConversationTurn[],
  shown: readonly Shown[],
  imagePlaceholder: string,
  question: string,
  where: 'last' | 'first' = 'last',
): Prompt {
  const turns: ConversationTurn[] = [...history, { question }];
  const at = where === 'first' ? 0 : turns.length - 1;
  const perToken = shown.some(({ subtitles }) => subtitles !== undefined);
  const withMedia = shown.reduceRight((text, { subtitles, inputs, frameTimes, tokensPerFrame }) => {
    if (subtitles !== undefined) {
      return movieQuestion({ subtitles, inputs, frameTimes, tokensPerFrame, imagePlaceholder }, text);
    }
    const places = perToken ? frameTimes.length * tokensPerFrame : 1;
    return `${imagePlaceholder.replace('<image>', '<image>'.repeat(places))}\n${text}`;
  }, turns[at]?.question ?? question);
  return {
    text: template.render(
      turns.map((turn, index) => (index === at ? { ...turn, question: withMedia } : turn)),
    ),
    layout: perToken ? 'per-token' : 'per-placeholder',
  };
}
