/** The method by which a package's object gives its native handle to the package of the next stage. Internal. */
export const nativeHandle: unique symbol = Symbol.for('@llamavid/native handle');
