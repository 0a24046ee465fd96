// Asks one question about one video: `node examples/ask-a-video.ts [video] [question] [model folder]`.
import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LlamaVid } from '@llamavid/pipeline';

const fixture = (path: string) => fileURLToPath(new URL(`../fixtures/${path}`, import.meta.url));
const [
  video = fixture('clips/bbb_720p_h264_aac.mp4'),
  question = 'What happens in the video?',
  folder = fixture('random-model'),
] = process.argv.slice(2);

if (folder === fixture('random-model')) {
  console.log(
    'The weights of this tiny model are random: the steps are real, the words of its answer mean nothing.\n',
  );
}
await using model = await LlamaVid.load(folder);
await using media = await model.open(video);

console.log(`video:    ${relative('.', video)}`);
console.log(`question: ${question}`);
process.stdout.write('answer:   ');
const answer = model.ask(media, question, { maxNewTokens: 24 });
// A model may write anything, and a terminal obeys control characters.
for await (const delta of answer) process.stdout.write(delta.replace(/\p{Cc}/gu, '·'));

const { sampling, usage, timings } = await answer.result();
console.log(`\n\n${sampling.frames} frames at ${sampling.fps} per second of ${sampling.source.codec}, \
${usage.visualTokens} visual tokens among ${usage.promptTokens} of the prompt, \
${(timings.totalMs / 1000).toFixed(1)} s in all.`);
