import {
  type DeviceDescription,
  describeDevice,
  describeModel,
  type ModelDescription,
  type LoadOptions as StageOptions,
} from '@llamavid/llm';
import { locateModel } from './model-name.js';
import { planRun, type RunPlan, type WeightFormat } from './run-plan.js';

/** What loading a model will be like. */
export interface PlannedLoad {
  name: string;
  folder: string;
  description: ModelDescription;
  device: DeviceDescription;
  plan: RunPlan;
  /** How the language model is loaded. */
  whole: StageOptions & WeightFormat;
  /** How the small parts are loaded, which feel an error in every answer. */
  small: StageOptions & WeightFormat & { load: '16bit' | '8bit' };
}

/** Looks at a model and the device before weights are read, and chooses what they are held in. */
export async function planLoad(nameOrFolder: string, options: StageOptions): Promise<PlannedLoad> {
  const { load = '16bit', ...given } = options;
  const { name, folder } = locateModel(nameOrFolder);
  const description = await describeModel(folder);
  const device = describeDevice(given.device);
  const plan = planRun(description, {
    frames: [],
    sourcePixels: 0,
    promptTokens: 1,
    question: '',
    maxNewTokens: 1,
    dtype: given.dtype ?? 'auto',
    load,
    kvCache: '16bit',
    device: device.name,
    split: given.split ?? 'layers',
  });
  const { dtype } = plan.options[plan.chosen] as WeightFormat;
  const whole = { ...given, device: device.name as StageOptions['device'], dtype, load };
  return {
    name,
    folder,
    description,
    device,
    plan,
    whole,
    small: { ...whole, load: load === '4bit' ? '8bit' : load },
  };
}
