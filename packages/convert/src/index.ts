export { type Converted, type ConvertOptions, type ConvertProgress, convert } from './convert.js';
export {
  type Inspection,
  type InspectOptions,
  inspect,
  type PartInspection,
  type Problem,
  type SideFile,
  type TensorInspection,
} from './inspect.js';
