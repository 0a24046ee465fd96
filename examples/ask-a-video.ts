// Asks about a video: `node examples/ask-a-video.ts [video] [question] [model folder]`.
// Without arguments: three questions about a video that the embedded model never saw, beside the truth.
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LlamaVid } from '@llamavid/pipeline';

const fixture = (path: string) => fileURLToPath(new URL(`../fixtures/${path}`, import.meta.url));
const sample = 'media/multi-018.mp4';
const [file = fixture(`world/${sample}`), question, folder] = process.argv.slice(2);

interface Asked {
  question: string;
  answer?: string;
}
let asked: Asked[] = [{ question: question ?? 'What happens in the video?' }];
if (process.argv.length === 2) {
  const rows = readFileSync(fixture('world/qa.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const types = ['first', 'motion', 'describe'];
  asked = types.map((type) => rows.find((row) => row.media === sample && row.type === type));
}

// Without a folder: the embedded model.
await using model = await LlamaVid.load(folder);
if (folder === undefined) {
  console.log('The embedded model is tiny: it knows a world of coloured shapes, and nothing else.\n');
}
await using video = await model.open(file);
console.log(`video:    ${relative('.', file)}`);

let right = 0;
for (const { question, answer: truth } of asked) {
  console.log(`\nquestion: ${question}`);
  process.stdout.write('answer:   ');
  const answer = model.ask(video, question, { maxNewTokens: 100 });
  // A model may write anything, and a terminal obeys control characters.
  for await (const delta of answer) process.stdout.write(delta.replace(/\p{Cc}/gu, '·'));
  console.log();
  const { text, sampling, usage, work, timings } = await answer.result();
  if (truth !== undefined) {
    console.log(`truth:    ${truth} ${text === truth ? '✓' : '✗ the answer is wrong'}`);
    right += Number(text === truth);
  }
  console.log(`          ${sampling.frames} frames at ${sampling.fps} per second of ${sampling.source.codec} (${work.framesEncoded} encoded now), \
${usage.visualTokens} visual tokens among ${usage.promptTokens} of the prompt, ${(timings.totalMs / 1000).toFixed(2)} s`);
}
if (process.argv.length === 2) {
  console.log(`\n${right} of ${asked.length} right. Ask about your own: npm start is examples/ask-a-video.ts, which takes
[video] [question] [model folder]; \`pnpm llamavid ask --help\` is the command line.`);
}
