import { bytesText, formatText, type MediaPlan, type PlannedSetting } from '@llamavid/pipeline';

/** A plan as a table for people: a column for each way to hold the weights. */
export function planText(plan: MediaPlan): string {
  const { options, memory, nearest, steps, featureBytes } = plan;
  const rows: [string, (setting: PlannedSetting) => string][] = [
    ['visual encoder', ({ weights }) => bytesText(weights.visualEncoder)],
    ['token generator', ({ weights }) => bytesText(weights.tokenGenerator)],
    ['language model', ({ weights }) => bytesText(weights.languageModel)],
    ['visual features', ({ features }) => bytesText(features)],
    ['prompt', ({ prompt }) => bytesText(prompt)],
    ['key/value cache', ({ kvCache }) => bytesText(kvCache)],
    ['decoding, pixels', ({ activations }) => bytesText(activations.media)],
    ['step of the encoder', ({ activations }) => bytesText(activations.visualEncoder)],
    ['step of the Q-Former', ({ activations }) => bytesText(activations.tokenGenerator)],
    ['step of the prompt', ({ activations }) => bytesText(activations.prefill)],
    ['logits', ({ activations }) => bytesText(activations.logits)],
    ['peak of the process', ({ peakBytes }) => bytesText(peakBytes)],
    ['highest in phase', ({ peakPhase }) => peakPhase],
    ['fits', ({ fits }) => (fits === null ? 'unknown' : fits ? 'yes' : 'no')],
  ];
  const columns = options.map((setting) => {
    const title = setting.load === '16bit' ? setting.dtype : setting.load;
    return [title, ...rows.map(([, cell]) => cell(setting))];
  });
  const names = ['weights as', ...rows.map(([name]) => name)];
  const wide = (texts: readonly string[]) => Math.max(...texts.map((text) => text.length));
  const table = names.map((name, row) => {
    const cells = columns.map((column) => `${column[row]}`.padStart(wide(column) + 2));
    return `${name.padEnd(wide(names))}${cells.join('')}`;
  });
  const chosen = options[plan.chosen];
  const free =
    memory === null
      ? 'not known on this system'
      : `${bytesText(memory.available)} of ${bytesText(memory.total)} (${memory.limit}), besides ${bytesText(plan.processBytes)} of this process`;
  const gpus = plan.gpus.map(
    ({ device, name, available, total }) =>
      `${device} ${name}, ${bytesText(available)} of ${bytesText(total)} free`,
  );
  const facts: [string, string][] = [
    ['model', `${plan.model.name} on ${plan.device}`],
    ['frames', `${plan.frames}, ${plan.tokensPerFrame} tokens each`],
    [
      'tokens',
      `prompt ${plan.promptTokens}, of which ${plan.visualTokens} visual; answer up to ${plan.maxNewTokens}; context ${plan.contextLength}`,
    ],
    [
      'at once',
      `${steps.encoderFrames} frames in the encoder, ${steps.tokenFrames} in the Q-Former, ${steps.prefillChunk} tokens of the prompt`,
    ],
    ['feature store', `${bytesText(featureBytes.f32)} as f32, ${bytesText(featureBytes.f16)} as f16`],
    ['free memory', free],
    ['GPU', gpus.length === 0 ? 'no GPU' : gpus.join('; ')],
    [
      'would take',
      chosen === undefined
        ? ''
        : `${formatText(chosen)}${chosen.fits === false ? ', which does not fit' : ''}`,
    ],
  ];
  if (nearest !== null) {
    const frames = nearest.frames === null ? '' : ` with ${nearest.frames} frames`;
    facts.push(['what fits', `${formatText(nearest)}${frames}, ${bytesText(nearest.peakBytes)} in all`]);
  } else if (chosen?.fits === false) {
    facts.push(['what fits', 'nothing: free memory, or take a smaller model']);
  }
  facts.push(...plan.notes.map((note): [string, string] => ['note', note]));
  const width = wide(facts.map(([name]) => name)) + 2;
  const lines = facts.map(([name, value]) => `${name.padEnd(width)}${value}`);
  return `${[...lines, '', ...table].join('\n')}\n`;
}
