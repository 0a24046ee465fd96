// What llama.cpp makes of the GGUF files in a folder: greedy answers and the ids of texts, as JSON on stdout.
//
// Run where `npm install node-llama-cpp@3.22.1` was, beside this file's copy, on the files that the test
// `llama_cpp::writes_its_files` of llamavid-convert writes:
//
//     node llama_cpp_answers.mjs FOLDER > fixtures/gguf/llama-cpp-answers.json
//
// An answer ends before the first choice in which the two best logits lie closer than 1: llama.cpp rounds what it multiplies
// with to 8 bits.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';

const MARGIN = 1;
const MOST = 12;
// Ids of no meaning, 2 to 9 of them.
const PROMPTS = Array.from({ length: 24 }, (_, prompt) =>
  Array.from(
    { length: 2 + (prompt % 8) },
    (_, place) => 3 + ((prompt * 7919 + place * place * 104729 + place * 31) % 297),
  ),
);
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
const llama = await getLlama({ gpu: false, build: 'never', maxThreads: 1, logLevel: LlamaLogLevel.error });
const answers = {};
for (const file of readdirSync(folder).sort()) {
  if (!file.endsWith('.gguf')) continue;
  const model = await llama.loadModel({ modelPath: join(folder, file) });
  const context = await model.createContext({ contextSize: 128, sequences: 1 });
  const sequence = context.getSequence();
  const greedy = [];
  for (const prompt of PROMPTS) {
    await sequence.clearHistory();
    const ids = [];
    let input = prompt;
    while (ids.length < MOST) {
      const asked = { generateNext: { probabilities: true, options: { temperature: 0 } } };
      const evaluated = input.map((id, index) => (index < input.length - 1 ? id : [id, asked]));
      const [best, second] = (await sequence.controlledEvaluate(evaluated)).at(-1).next.probabilities;
      if (Math.log(best[1] / second[1]) < MARGIN) break;
      ids.push(best[0]);
      input = [best[0]];
    }
    greedy.push({ prompt, ids });
  }
  const { bos, eos, shouldPrependBosToken } = model.tokens;
  const texts = TEXTS.map((text) => ({ text, ids: [...model.tokenize(text, true)] }));
  answers[file.replace('.gguf', '')] = { greedy, bos: shouldPrependBosToken ? bos : null, eos, texts };
  await context.dispose();
  await model.dispose();
}
// A line for each answer and each text.
console.log(
  JSON.stringify(answers, undefined, 1)
    .replace(/\n {4,}/g, ' ')
    .replace(/\n {3}(?=[}\]])/g, ' '),
);
process.exit();
