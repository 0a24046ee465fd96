// What llama.cpp makes of the GGUF files in a folder: greedy answers and the ids of texts, as JSON on stdout.
//
// Run where `npm install node-llama-cpp@3.22.1` was, beside this file's copy, on the files that the test
// `llama_cpp::writes_its_files` of llamavid-convert writes:
//
//     node llama_cpp_answers.mjs FOLDER > fixtures/gguf/llama-cpp-answers.json
//
// An answer ends before the first choice in which the two best logits lie closer than 0.5: llama.cpp rounds what it multiplies
// with to 8 bits.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';

const MARGIN = 0.5;
const MOST = 12;
const PROMPT = [1, 251, 123, 36, 23, 46, 71, 89, 88];
const TEXTS = [
  'What is shown?',
  'A dog. The dogs run over the bridges.',
  '  two  spaces\n\n and\ttabs \r\n at the end  ',
  "It's WE'VE they'll 1234567 in 12 steps",
  'ü 猫 \u{1f600}',
  '<frame>the<frame> the',
  'answer</s>USER: what</s>',
];

const [folder = '.'] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error });
const answers = {};
for (const file of readdirSync(folder).sort()) {
  if (!file.endsWith('.gguf')) continue;
  const model = await llama.loadModel({ modelPath: join(folder, file) });
  const context = await model.createContext({ contextSize: 128, sequences: 1 });
  const sequence = context.getSequence();
  const ids = [];
  let input = PROMPT;
  while (ids.length < MOST) {
    const evaluated = input.map((id, index) =>
      index < input.length - 1 ? id : [id, { generateNext: { token: true, probabilities: true, options: { temperature: 0 } } }],
    );
    const next = (await sequence.controlledEvaluate(evaluated)).at(-1)?.next;
    const [[best, first], [, second]] = [...next.probabilities].slice(0, 2);
    if (Math.log(first / second) < MARGIN) break;
    ids.push(best);
    input = [best];
  }
  const texts = TEXTS.map((text) => ({ text, ids: [...model.tokenize(text, true)] }));
  answers[file.replace('.gguf', '')] = { prompt: PROMPT, ids, texts };
  await context.dispose();
  await model.dispose();
}
console.log(JSON.stringify(answers, undefined, 2));
process.exit();
