import type { PromptPreview } from '@llamavid/pipeline';
import { samplingToJson } from './sampling-to-json.js';

/** The prompt with each frame on a line of its own, its time in front. */
export function previewToText(preview: PromptPreview): string {
  const { prompt, frameTimes, tokensPerFrame, promptTokens, visualTokens, contextLength } = preview;
  const places = '<image>'.repeat(tokensPerFrame);
  const [head = '', ...behind] = prompt.split(places);
  const times = frameTimes.flat();
  const lines = behind.map((text, index) => `${seconds(times[index])}  ${places}${text}`);
  const fits = promptTokens < contextLength ? '' : ', which is too many';
  return `${[head, ...lines].filter((line) => line !== '').join('\n')}

query model: ${preview.queryQuestion}
template: ${preview.conversation}
${times.length} frames, ${promptTokens} tokens, ${visualTokens} of them visual; prompt and answer have room for ${contextLength}${fits}.
Line breaks in front of a time are not part of the prompt; --json writes it to the letter.
`;
}

/** The object that `--dry-run --json` writes. */
export function previewToJson(preview: PromptPreview): object {
  const { prompt, conversation, queryQuestion, frameTimes, tokensPerFrame } = preview;
  const { promptTokens, visualTokens, contextLength, samplings, subtitles } = preview;
  return {
    dryRun: true,
    prompt,
    queryQuestion,
    conversation,
    frameTimes,
    tokensPerFrame,
    usage: { promptTokens, visualTokens },
    contextLength,
    samplings: samplings.map(samplingToJson),
    subtitles,
  };
}

function seconds(time: number | undefined): string {
  return `${(time ?? 0).toFixed(2)} s`.padStart(10);
}
