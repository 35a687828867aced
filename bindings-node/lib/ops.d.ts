// Made from the op table of the core by scripts/ops-types.mjs. Do not edit: npm run bless.

import type { Bytes, RunOptions } from './index.js'

/** Words of option `encoding` that ask for text instead of bytes. */
export type TextEncoding = Exclude<'bytes' | 'hex' | 'base64', 'bytes'>

/** Bytes, or text when option `encoding` asks for it. */
export type Encoded = Uint8Array | string

/** Options of `noop`. */
export interface NoopParams {
  /** Pause in milliseconds; ends early when the task is cancelled. (default 0; 0 to 3600000) */
  sleepMs?: number | undefined
  /** Sleeps on when cancelled, as a badly behaved op does. (default false) */
  ignoreCancel?: boolean | undefined
  /** Panics, to show that the pool survives. (default false) */
  panic?: boolean | undefined
}

/** Options of `sha256`. */
export interface Sha256Params {
  /** Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64. (default 'bytes') */
  encoding?: 'bytes' | 'hex' | 'base64' | undefined
}

/** Options of `sha512`. */
export interface Sha512Params {
  /** Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64. (default 'bytes') */
  encoding?: 'bytes' | 'hex' | 'base64' | undefined
}

/** Options of `sha224`. */
export interface Sha224Params {
  /** Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64. (default 'bytes') */
  encoding?: 'bytes' | 'hex' | 'base64' | undefined
}

/** Options of `sha384`. */
export interface Sha384Params {
  /** Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64. (default 'bytes') */
  encoding?: 'bytes' | 'hex' | 'base64' | undefined
}

/** Options of `sha512_256`. */
export interface Sha512256Params {
  /** Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64. (default 'bytes') */
  encoding?: 'bytes' | 'hex' | 'base64' | undefined
}

/** Options of `blake3`. */
export interface Blake3Params {
  /** Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64. (default 'bytes') */
  encoding?: 'bytes' | 'hex' | 'base64' | undefined
  /** Bytes of output. (default 32; 1 to 1048576) */
  length?: number | undefined
  /** Key of exactly 32 bytes: computes the keyed hash (a MAC). Excludes `context`. (no default) */
  key?: Bytes | string | undefined
  /** Context string, unique to the application: derives a key from the input (`derive_key`). Excludes `key`. (no default) */
  context?: string | undefined
}

/** Options of `xxh3`. */
export interface Xxh3Params {
  /** Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64. (default 'bytes') */
  encoding?: 'bytes' | 'hex' | 'base64' | undefined
  /** Width of the hash: 64 or 128 bits. (default 64; 64 to 128) */
  bits?: number | undefined
  /** Seed; a negative one stands for its two's complement of 64 bits. (default 0; -9223372036854775808 to 9223372036854775807) */
  seed?: number | undefined
}

/** Options of `crc32`. */
export interface Crc32Params {
  /** CRC-32 of the bytes before this input, to go on from there. (default 0; 0 to 4294967295) */
  value?: number | undefined
}

/** Options of `password.hash`. */
export interface PasswordHashParams {
  /** Algorithm. bcrypt reads 72 bytes at most, up to a zero byte; passwords beyond that are `Invalid`. (default 'argon2id') */
  algorithm?: 'argon2id' | 'argon2i' | 'argon2d' | 'scrypt' | 'bcrypt' | 'pbkdf2-sha256' | 'pbkdf2-sha512' | undefined
  /** argon2: memory in KiB, at least 8 per lane; default 19456 (19 MiB). (no default; 8 to 4294967296) */
  memoryKib?: number | undefined
  /** argon2: passes over the memory, default 2; pbkdf2: iterations, default 600000 with SHA-256 and 210000 with SHA-512. (no default; 1 to 4294967295) */
  iterations?: number | undefined
  /** argon2, scrypt: lanes (p), computed one after another; default 1. (no default; 1 to 16777215) */
  parallelism?: number | undefined
  /** bcrypt: rounds as a power of two, 4 to 31, default 12; scrypt: N as a power of two, default 17. (no default; 1 to 31) */
  cost?: number | undefined
  /** scrypt: r, the block size in units of 128 bytes; default 8. (no default; 1 to 1048576) */
  blockSize?: number | undefined
  /** Salt of 8 to 48 bytes, bcrypt: 16 bytes; default 16 random bytes. For tests. (no default) */
  salt?: Bytes | string | undefined
  /** argon2: a key kept apart from the hashes (pepper), at most 64 KiB. (no default) */
  secret?: Bytes | string | undefined
  /** Most memory in KiB that the costs may ask for; more is `TooLarge`. Default 256 MiB. (default 262144; 0 to 4294967296) */
  maxMemoryKib?: number | undefined
  /** Most work that the costs may ask for, as estimated milliseconds of one core; more is `TooLarge`. Default 10 s. (default 10000; 0 to 9223372036854775807) */
  maxWorkMs?: number | undefined
}

/** Options of `password.verify`. */
export interface PasswordVerifyParams {
  /** The string that `password.hash` or another library made. (required) */
  hash: string
  /** argon2: a key kept apart from the hashes (pepper), at most 64 KiB. (no default) */
  secret?: Bytes | string | undefined
  /** Most memory in KiB that the costs may ask for; more is `TooLarge`. Default 256 MiB. (default 262144; 0 to 4294967296) */
  maxMemoryKib?: number | undefined
  /** Most work that the costs may ask for, as estimated milliseconds of one core; more is `TooLarge`. Default 10 s. (default 10000; 0 to 9223372036854775807) */
  maxWorkMs?: number | undefined
}

/** Options of `password.derive`. */
export interface PasswordDeriveParams {
  /** Algorithm. (default 'argon2id') */
  algorithm?: 'argon2id' | 'argon2i' | 'argon2d' | 'scrypt' | 'pbkdf2-sha256' | 'pbkdf2-sha512' | undefined
  /** Salt; argon2: at least 8 bytes. (required) */
  salt: Bytes | string
  /** Bytes of output; argon2: at least 4. (default 32; 1 to 1048576) */
  length?: number | undefined
  /** argon2: memory in KiB, at least 8 per lane; default 19456 (19 MiB). (no default; 8 to 4294967296) */
  memoryKib?: number | undefined
  /** argon2: passes over the memory, default 2; pbkdf2: iterations, default 600000 with SHA-256 and 210000 with SHA-512. (no default; 1 to 4294967295) */
  iterations?: number | undefined
  /** argon2, scrypt: lanes (p), computed one after another; default 1. (no default; 1 to 16777215) */
  parallelism?: number | undefined
  /** bcrypt: rounds as a power of two, 4 to 31, default 12; scrypt: N as a power of two, default 17. (no default; 1 to 31) */
  cost?: number | undefined
  /** scrypt: r, the block size in units of 128 bytes; default 8. (no default; 1 to 1048576) */
  blockSize?: number | undefined
  /** argon2: a key kept apart from the hashes (pepper), at most 64 KiB. (no default) */
  secret?: Bytes | string | undefined
  /** argon2: data bound to the key (X of RFC 9106), at most 32 bytes. (no default) */
  associatedData?: Bytes | string | undefined
  /** Most memory in KiB that the costs may ask for; more is `TooLarge`. Default 256 MiB. (default 262144; 0 to 4294967296) */
  maxMemoryKib?: number | undefined
  /** Most work that the costs may ask for, as estimated milliseconds of one core; more is `TooLarge`. Default 10 s. (default 10000; 0 to 9223372036854775807) */
  maxWorkMs?: number | undefined
}

/** Options of `gzip`. */
export interface GzipParams {
  /** Effort from 0 (stored) over 1 (least time) to 9 (least size). (default 6; 0 to 9) */
  level?: number | undefined
}

/** Options of `gunzip`. */
export interface GunzipParams {
  /** Most bytes of output; more is `TooLarge`. Default 1 GiB. (default 1073741824; 0 to 70368744177664) */
  maxOutput?: number | undefined
}

/** Options of `deflate`. */
export interface DeflateParams {
  /** Effort from 0 (stored) over 1 (least time) to 9 (least size). (default 6; 0 to 9) */
  level?: number | undefined
}

/** Options of `inflate`. */
export interface InflateParams {
  /** Most bytes of output; more is `TooLarge`. Default 1 GiB. (default 1073741824; 0 to 70368744177664) */
  maxOutput?: number | undefined
}

/** Options of `zlib`. */
export interface ZlibParams {
  /** Effort from 0 (stored) over 1 (least time) to 9 (least size). (default 6; 0 to 9) */
  level?: number | undefined
}

/** Options of `unzlib`. */
export interface UnzlibParams {
  /** Most bytes of output; more is `TooLarge`. Default 1 GiB. (default 1073741824; 0 to 70368744177664) */
  maxOutput?: number | undefined
}

/** Options of `zstd`. */
export interface ZstdParams {
  /** Effort from 1 to 19; 20 to 22 use more memory (up to 1 GiB); below 0 trades size for time. (default 3; -131072 to 22) */
  level?: number | undefined
  /** Adds a checksum of 4 bytes, which decoders verify. (default false) */
  checksum?: boolean | undefined
  /** Also finds matches that lie megabytes apart, in a window of 128 MiB. (default false) */
  long?: boolean | undefined
  /** Window as a power of two of bytes; every decoder accepts up to 27. Default by level and input size. (no default; 10 to 27) */
  windowLog?: number | undefined
  /** Dictionary, trained or raw, that both sides must have. (no default) */
  dictionary?: Bytes | string | undefined
}

/** Options of `unzstd`. */
export interface UnzstdParams {
  /** Most bytes of output; more is `TooLarge`. Default 1 GiB. (default 1073741824; 0 to 70368744177664) */
  maxOutput?: number | undefined
  /** Largest window that a frame may ask for, as a power of two of bytes; a larger one is `TooLarge`. (default 27; 10 to 31) */
  maxWindowLog?: number | undefined
  /** Dictionary, trained or raw, that both sides must have. (no default) */
  dictionary?: Bytes | string | undefined
}

/** Options of `brotli`. */
export interface BrotliParams {
  /** Effort; 11, which other libraries take by default, is meant for files that are compressed once. (default 5; 0 to 11) */
  quality?: number | undefined
  /** Window as a power of two of bytes. (default 22; 10 to 24) */
  window?: number | undefined
  /** What the input is: anything, UTF-8 text, or a WOFF 2 font. (default 'generic') */
  mode?: 'generic' | 'text' | 'font' | undefined
}

/** Options of `unbrotli`. */
export interface UnbrotliParams {
  /** Most bytes of output; more is `TooLarge`. Default 1 GiB. (default 1073741824; 0 to 70368744177664) */
  maxOutput?: number | undefined
}

/** Options of `lz4`. */
export interface Lz4Params {
  /** Bytes of a block, the memory that a decoder needs; `auto` is the smallest that holds the input, at most 4m. (default 'auto') */
  blockSize?: 'auto' | '64k' | '256k' | '1m' | '4m' | undefined
  /** Lets a block refer to the one before it: smaller, but decoders cannot work on blocks apart. (default false) */
  linked?: boolean | undefined
  /** Adds a checksum of the content, 4 bytes, which decoders verify. (default true) */
  checksum?: boolean | undefined
  /** Adds a checksum to each block. (default false) */
  blockChecksum?: boolean | undefined
}

/** Options of `unlz4`. */
export interface Unlz4Params {
  /** Most bytes of output; more is `TooLarge`. Default 1 GiB. (default 1073741824; 0 to 70368744177664) */
  maxOutput?: number | undefined
}

/** Options of `image.thumbnail`. */
export interface ImageThumbnailParams {
  /** Width in pixels; without it, it follows from the height. (no default; 1 to 65535) */
  width?: number | undefined
  /** Height in pixels; without it, it follows from the width. (no default; 1 to 65535) */
  height?: number | undefined
  /** With both width and height: cut (cover), padded (contain), distorted (fill), at most that large (inside), at least (outside). (default 'cover') */
  fit?: 'cover' | 'contain' | 'fill' | 'inside' | 'outside' | undefined
  /** Which part cover keeps, and where contain puts the picture. (default 'center') */
  position?: 'center' | 'top' | 'bottom' | 'left' | 'right' | undefined
  /** Resampling filter, in sRGB values. (default 'lanczos3') */
  filter?: 'lanczos3' | 'mitchell' | 'cubic' | 'bilinear' | 'box' | 'nearest' | undefined
  /** Format of the result; by default that of the input, or png for gif and bmp. webp is lossless; encoding it sees no cancellation. (no default) */
  format?: 'jpeg' | 'png' | 'webp' | undefined
  /** Quality of a jpeg; png and webp are lossless and ignore it. (default 80; 1 to 100) */
  quality?: number | undefined
  /** Colour resolution of a jpeg: a quarter or all of the pixels. (default '4:2:0') */
  subsampling?: '4:2:0' | '4:4:4' | undefined
  /** Effort for a png. (default 'balanced') */
  compression?: 'fast' | 'balanced' | 'best' | undefined
  /** Colour behind transparent pixels in a jpeg and beside a contained picture: #rgb, #rrggbb or #rrggbbaa. (default '#ffffff') */
  background?: string | undefined
  /** Turns and mirrors the pixels as the EXIF orientation says; width and height are those of the turned picture. (default true) */
  autoOrient?: boolean | undefined
  /** Most pixels of the input and of the result; more is TooLarge, before any memory is taken. Up to 8 bytes of memory per pixel. (default 100000000; 1 to 4294967296) */
  maxPixels?: number | undefined
}

/** Options of `image.resize`. */
export interface ImageResizeParams {
  /** Width in pixels; without it, it follows from the height. (no default; 1 to 65535) */
  width?: number | undefined
  /** Height in pixels; without it, it follows from the width. (no default; 1 to 65535) */
  height?: number | undefined
  /** With both width and height: cut (cover), padded (contain), distorted (fill), at most that large (inside), at least (outside). (default 'cover') */
  fit?: 'cover' | 'contain' | 'fill' | 'inside' | 'outside' | undefined
  /** Which part cover keeps, and where contain puts the picture. (default 'center') */
  position?: 'center' | 'top' | 'bottom' | 'left' | 'right' | undefined
  /** Resampling filter, in sRGB values. (default 'lanczos3') */
  filter?: 'lanczos3' | 'mitchell' | 'cubic' | 'bilinear' | 'box' | 'nearest' | undefined
  /** Keeps a picture that is smaller than asked for at its size. (default false) */
  withoutEnlargement?: boolean | undefined
  /** Format of the result; by default that of the input, or png for gif and bmp. webp is lossless; encoding it sees no cancellation. (no default) */
  format?: 'jpeg' | 'png' | 'webp' | undefined
  /** Quality of a jpeg; png and webp are lossless and ignore it. (default 80; 1 to 100) */
  quality?: number | undefined
  /** Colour resolution of a jpeg: a quarter or all of the pixels. (default '4:2:0') */
  subsampling?: '4:2:0' | '4:4:4' | undefined
  /** Effort for a png. (default 'balanced') */
  compression?: 'fast' | 'balanced' | 'best' | undefined
  /** Colour behind transparent pixels in a jpeg and beside a contained picture: #rgb, #rrggbb or #rrggbbaa. (default '#ffffff') */
  background?: string | undefined
  /** Turns and mirrors the pixels as the EXIF orientation says; width and height are those of the turned picture. (default true) */
  autoOrient?: boolean | undefined
  /** Most pixels of the input and of the result; more is TooLarge, before any memory is taken. Up to 8 bytes of memory per pixel. (default 100000000; 1 to 4294967296) */
  maxPixels?: number | undefined
}

/** Options of `image.convert`. */
export interface ImageConvertParams {
  /** Format of the result; by default that of the input, or png for gif and bmp. webp is lossless; encoding it sees no cancellation. (no default) */
  format?: 'jpeg' | 'png' | 'webp' | undefined
  /** Quality of a jpeg; png and webp are lossless and ignore it. (default 80; 1 to 100) */
  quality?: number | undefined
  /** Colour resolution of a jpeg: a quarter or all of the pixels. (default '4:2:0') */
  subsampling?: '4:2:0' | '4:4:4' | undefined
  /** Effort for a png. (default 'balanced') */
  compression?: 'fast' | 'balanced' | 'best' | undefined
  /** Colour behind transparent pixels in a jpeg and beside a contained picture: #rgb, #rrggbb or #rrggbbaa. (default '#ffffff') */
  background?: string | undefined
  /** Turns and mirrors the pixels as the EXIF orientation says; width and height are those of the turned picture. (default true) */
  autoOrient?: boolean | undefined
  /** Most pixels of the input and of the result; more is TooLarge, before any memory is taken. Up to 8 bytes of memory per pixel. (default 100000000; 1 to 4294967296) */
  maxPixels?: number | undefined
}

/** Options of `json.validate`. */
export interface JsonValidateParams {
  /** Most objects and arrays inside each other; more is TooLarge. 0 admits only a string, number, true, false or null. (default 1024; 0 to 10000000) */
  maxDepth?: number | undefined
  /** Skips a UTF-8 byte order mark at the start instead of refusing it as Corrupt. (default false) */
  allowBom?: boolean | undefined
  /** Raises Corrupt for a text that is not JSON; false returns false instead. Limits and cancellation always raise. (default true) */
  fail?: boolean | undefined
  /** Refuses an object that has a member name twice, compared after unescaping. (default false) */
  uniqueNames?: boolean | undefined
  /** Accepts an escape such as \ud800 without its other half, as the grammar and JavaScript do; false refuses it. (default true) */
  loneSurrogates?: boolean | undefined
}

/** Options of `json.minify`. */
export interface JsonMinifyParams {
  /** Most objects and arrays inside each other; more is TooLarge. 0 admits only a string, number, true, false or null. (default 1024; 0 to 10000000) */
  maxDepth?: number | undefined
  /** Skips a UTF-8 byte order mark at the start instead of refusing it as Corrupt. (default false) */
  allowBom?: boolean | undefined
}

/** Options of `json.format`. */
export interface JsonFormatParams {
  /** Spaces per level. (default 2; 0 to 16) */
  indent?: number | undefined
  /** Indents by one tab per level instead. (default false) */
  tabs?: boolean | undefined
  /** Most objects and arrays inside each other; more is TooLarge. 0 admits only a string, number, true, false or null. (default 1024; 0 to 10000000) */
  maxDepth?: number | undefined
  /** Skips a UTF-8 byte order mark at the start instead of refusing it as Corrupt. (default false) */
  allowBom?: boolean | undefined
  /** Most bytes of the result; more is TooLarge. Default 1 GiB. (default 1073741824; 0 to 9223372036854775807) */
  maxOutput?: number | undefined
}

/** Options of `json.pointer`. */
export interface JsonPointerParams {
  /** Pointers such as /items/0/name; the empty text names the whole document. (required) */
  pointers: string[]
  /** What a pointer to nothing does: nil in its place, or NotFound for the call. (default 'nil') */
  missing?: 'nil' | 'fail' | undefined
  /** Most objects and arrays inside each other; more is TooLarge. 0 admits only a string, number, true, false or null. (default 1024; 0 to 10000000) */
  maxDepth?: number | undefined
  /** Skips a UTF-8 byte order mark at the start instead of refusing it as Corrupt. (default false) */
  allowBom?: boolean | undefined
  /** Most bytes of the result; more is TooLarge. Default 1 GiB. (default 1073741824; 0 to 9223372036854775807) */
  maxOutput?: number | undefined
}

/** Options of `json.query`. */
export interface JsonQueryParams {
  /** The query, such as $.items[?@.price < 10].name; Invalid with the place when it is not well-formed. (required) */
  path: string
  /** What the array holds: values, normalized paths such as "$['items'][0]", or objects with both as path and value. (default 'values') */
  select?: 'values' | 'paths' | 'nodes' | undefined
  /** Most objects and arrays inside each other; more is TooLarge. 0 admits only a string, number, true, false or null. (default 1024; 0 to 10000000) */
  maxDepth?: number | undefined
  /** Skips a UTF-8 byte order mark at the start instead of refusing it as Corrupt. (default false) */
  allowBom?: boolean | undefined
  /** Most nodes in any list that the query makes on its way; more is TooLarge. (default 10000000; 1 to 4294967296) */
  maxMatches?: number | undefined
  /** Most bytes of the result; more is TooLarge. Default 1 GiB. (default 1073741824; 0 to 9223372036854775807) */
  maxOutput?: number | undefined
}

/** Options of `json.filter_lines`. */
export interface JsonFilterLinesParams {
  /** Filter expression of RFC 9535, in which @ and $ are the line's value: @.status >= 500 && match(@.path, '/api/.*'). Without it every line passes. (no default) */
  where?: string | undefined
  /** A JSON Pointer, to write its value in place of the line, or a map from names to pointers, to write an object; a missing value is null. Without it the line itself is written. (no default) */
  project?: string | Record<string, string> | undefined
  /** What a line that is not JSON does: Corrupt with its line number and column, or nothing. (default 'fail') */
  badLines?: 'fail' | 'skip' | undefined
  /** Stops after so many lines have passed; what comes later is not looked at. (no default; 1 to 9223372036854775807) */
  limit?: number | undefined
  /** Most bytes of one line; more is TooLarge. Default 16 MiB. (default 16777216; 1 to 1073741824) */
  maxLine?: number | undefined
  /** Most objects and arrays inside each other; more is TooLarge. 0 admits only a string, number, true, false or null. (default 1024; 0 to 10000000) */
  maxDepth?: number | undefined
  /** Skips a UTF-8 byte order mark at the start instead of refusing it as Corrupt. (default false) */
  allowBom?: boolean | undefined
  /** Most nodes in any list that the query makes on its way; more is TooLarge. (default 10000000; 1 to 4294967296) */
  maxMatches?: number | undefined
  /** Most bytes of the result; more is TooLarge. Default 1 GiB. (default 1073741824; 0 to 9223372036854775807) */
  maxOutput?: number | undefined
}

/** Options of `csv.to_arrow`. */
export interface CsvToArrowParams {
  /** Arrow IPC streaming format, or file format (random access, Feather version 2). (default 'stream') */
  container?: 'stream' | 'file' | undefined
  /** Columns to keep, in this order. All by default. (no default) */
  columns?: string[] | undefined
  /** Most rows of one record batch. A batch also ends where 1 MiB of the text ends. (default 65536; 1 to 2147483648) */
  batchRows?: number | undefined
  /** What separates fields: one ASCII character. (default ',') */
  delimiter?: string | undefined
  /** What encloses a field that holds delimiters, quotes (doubled) or line ends: one ASCII character, or empty for none. (default '"') */
  quote?: string | undefined
  /** A character, such as \, that takes the meaning from the one after it. None by default. (no default) */
  escape?: string | undefined
  /** Leaves out lines that begin with this character. None by default. (no default) */
  comment?: string | undefined
  /** The first record holds the column names; false names them column_1, column_2 and so on. A name that comes again gets .1, .2. (default true) */
  header?: boolean | undefined
  /** Column names, in place of the header's. (no default) */
  names?: string[] | undefined
  /** Types of columns by name; the others are inferred. bool, int8, int16, int32, int64, uint8, uint16, uint32, float32, float64, string, date, timestamp[s], [ms], [us] or [ns], with a zone as timestamp[ms, UTC] or timestamp[ms, +02:00]. A field that does not have its type is Corrupt with its line. (no default) */
  schema?: Record<string, string> | undefined
  /** Texts that mean null; by default the empty text alone. In a column of text a quoted field is never null. (no default) */
  nullValues?: string[] | undefined
  /** Removes spaces and tabs around unquoted fields. (default false) */
  trim?: boolean | undefined
  /** What a record with too few or too many fields does: Corrupt with its line; empty fields where some are missing (too many are still Corrupt); or nothing, the record is left out. (default 'fail') */
  ragged?: 'fail' | 'fill' | 'skip' | undefined
  /** false makes every column a string that schema does not name. (default true) */
  inferTypes?: boolean | undefined
  /** Infers types from so many rows; a later field that does not fit is Corrupt with its line. 0 looks at all rows, so that every field fits. (default 0; 0 to 9223372036854775807) */
  inferRows?: number | undefined
  /** Most rows; more is TooLarge. No limit by default. (no default; 0 to 9223372036854775807) */
  maxRows?: number | undefined
  /** Most columns; more is TooLarge. (default 4096; 1 to 1048576) */
  maxColumns?: number | undefined
  /** Most bytes of one record; more is TooLarge. Default 16 MiB. (default 16777216; 1 to 1073741824) */
  maxRecord?: number | undefined
  /** Most bytes of the result, and of the fields that ragged: fill adds; more is TooLarge. Default 4 GiB. (default 4294967296; 0 to 9223372036854775807) */
  maxOutput?: number | undefined
}

/** Options of `csv.probe`. */
export interface CsvProbeParams {
  /** What separates fields: one ASCII character. (default ',') */
  delimiter?: string | undefined
  /** What encloses a field that holds delimiters, quotes (doubled) or line ends: one ASCII character, or empty for none. (default '"') */
  quote?: string | undefined
  /** A character, such as \, that takes the meaning from the one after it. None by default. (no default) */
  escape?: string | undefined
  /** Leaves out lines that begin with this character. None by default. (no default) */
  comment?: string | undefined
  /** The first record holds the column names; false names them column_1, column_2 and so on. A name that comes again gets .1, .2. (default true) */
  header?: boolean | undefined
  /** Column names, in place of the header's. (no default) */
  names?: string[] | undefined
  /** Types of columns by name; the others are inferred. bool, int8, int16, int32, int64, uint8, uint16, uint32, float32, float64, string, date, timestamp[s], [ms], [us] or [ns], with a zone as timestamp[ms, UTC] or timestamp[ms, +02:00]. A field that does not have its type is Corrupt with its line. (no default) */
  schema?: Record<string, string> | undefined
  /** Texts that mean null; by default the empty text alone. In a column of text a quoted field is never null. (no default) */
  nullValues?: string[] | undefined
  /** Removes spaces and tabs around unquoted fields. (default false) */
  trim?: boolean | undefined
  /** What a record with too few or too many fields does: Corrupt with its line; empty fields where some are missing (too many are still Corrupt); or nothing, the record is left out. (default 'fail') */
  ragged?: 'fail' | 'fill' | 'skip' | undefined
  /** false makes every column a string that schema does not name. (default true) */
  inferTypes?: boolean | undefined
  /** Infers types from so many rows; a later field that does not fit is Corrupt with its line. 0 looks at all rows, so that every field fits. (default 0; 0 to 9223372036854775807) */
  inferRows?: number | undefined
  /** Most rows; more is TooLarge. No limit by default. (no default; 0 to 9223372036854775807) */
  maxRows?: number | undefined
  /** Most columns; more is TooLarge. (default 4096; 1 to 1048576) */
  maxColumns?: number | undefined
  /** Most bytes of one record; more is TooLarge. Default 16 MiB. (default 16777216; 1 to 1073741824) */
  maxRecord?: number | undefined
  /** Most bytes of the result, and of the fields that ragged: fill adds; more is TooLarge. Default 4 GiB. (default 4294967296; 0 to 9223372036854775807) */
  maxOutput?: number | undefined
}

/** Options of `csv.aggregate`. */
export interface CsvAggregateParams {
  /** Columns whose values make a group. (no default) */
  groupBy?: string[] | undefined
  /** Result columns by name: { n: 'count', total: { fn: 'sum', column: 'price' } }. count without a column counts rows; sum and mean want numbers, min and max take any type. (required) */
  aggregates: Record<string, 'count' | { fn: 'count' | 'count_distinct' | 'sum' | 'min' | 'max' | 'mean'; column?: string }>
  /** Arrow IPC; a JSON array of objects, dates and timestamps as ISO 8601 text, NaN and infinities as null; or CSV with CRLF. (default 'arrow') */
  format?: 'arrow' | 'json' | 'csv' | undefined
  /** Arrow IPC streaming format, or file format (random access, Feather version 2). (default 'stream') */
  container?: 'stream' | 'file' | undefined
  /** Most groups, the distinct values of count_distinct included; more is TooLarge. (default 1000000; 1 to 4294967296) */
  maxGroups?: number | undefined
  /** What separates fields: one ASCII character. (default ',') */
  delimiter?: string | undefined
  /** What encloses a field that holds delimiters, quotes (doubled) or line ends: one ASCII character, or empty for none. (default '"') */
  quote?: string | undefined
  /** A character, such as \, that takes the meaning from the one after it. None by default. (no default) */
  escape?: string | undefined
  /** Leaves out lines that begin with this character. None by default. (no default) */
  comment?: string | undefined
  /** The first record holds the column names; false names them column_1, column_2 and so on. A name that comes again gets .1, .2. (default true) */
  header?: boolean | undefined
  /** Column names, in place of the header's. (no default) */
  names?: string[] | undefined
  /** Types of columns by name; the others are inferred. bool, int8, int16, int32, int64, uint8, uint16, uint32, float32, float64, string, date, timestamp[s], [ms], [us] or [ns], with a zone as timestamp[ms, UTC] or timestamp[ms, +02:00]. A field that does not have its type is Corrupt with its line. (no default) */
  schema?: Record<string, string> | undefined
  /** Texts that mean null; by default the empty text alone. In a column of text a quoted field is never null. (no default) */
  nullValues?: string[] | undefined
  /** Removes spaces and tabs around unquoted fields. (default false) */
  trim?: boolean | undefined
  /** What a record with too few or too many fields does: Corrupt with its line; empty fields where some are missing (too many are still Corrupt); or nothing, the record is left out. (default 'fail') */
  ragged?: 'fail' | 'fill' | 'skip' | undefined
  /** false makes every column a string that schema does not name. (default true) */
  inferTypes?: boolean | undefined
  /** Infers types from so many rows; a later field that does not fit is Corrupt with its line. 0 looks at all rows, so that every field fits. (default 0; 0 to 9223372036854775807) */
  inferRows?: number | undefined
  /** Most rows; more is TooLarge. No limit by default. (no default; 0 to 9223372036854775807) */
  maxRows?: number | undefined
  /** Most columns; more is TooLarge. (default 4096; 1 to 1048576) */
  maxColumns?: number | undefined
  /** Most bytes of one record; more is TooLarge. Default 16 MiB. (default 16777216; 1 to 1073741824) */
  maxRecord?: number | undefined
  /** Most bytes of the result, and of the fields that ragged: fill adds; more is TooLarge. Default 4 GiB. (default 4294967296; 0 to 9223372036854775807) */
  maxOutput?: number | undefined
}

/** One typed function per native op, on the default pool. */
export interface Ops {
  /** Returns its input, after an optional pause; measures what a task costs. */
  noop(data?: Bytes, params?: NoopParams, options?: RunOptions): Promise<Uint8Array>
  /** Computes the SHA-256 digest (FIPS 180-4) of its input: 32 bytes. */
  sha256(data: Bytes, params: Sha256Params & { encoding: TextEncoding }, options?: RunOptions): Promise<string>
  sha256(data: Bytes, params?: Sha256Params & { encoding?: 'bytes' | undefined }, options?: RunOptions): Promise<Uint8Array>
  sha256(data: Bytes, params: Sha256Params, options?: RunOptions): Promise<Encoded>
  /** Computes the SHA-512 digest (FIPS 180-4) of its input: 64 bytes. */
  sha512(data: Bytes, params: Sha512Params & { encoding: TextEncoding }, options?: RunOptions): Promise<string>
  sha512(data: Bytes, params?: Sha512Params & { encoding?: 'bytes' | undefined }, options?: RunOptions): Promise<Uint8Array>
  sha512(data: Bytes, params: Sha512Params, options?: RunOptions): Promise<Encoded>
  /** Computes the SHA-224 digest (FIPS 180-4) of its input: 28 bytes. */
  sha224(data: Bytes, params: Sha224Params & { encoding: TextEncoding }, options?: RunOptions): Promise<string>
  sha224(data: Bytes, params?: Sha224Params & { encoding?: 'bytes' | undefined }, options?: RunOptions): Promise<Uint8Array>
  sha224(data: Bytes, params: Sha224Params, options?: RunOptions): Promise<Encoded>
  /** Computes the SHA-384 digest (FIPS 180-4) of its input: 48 bytes. */
  sha384(data: Bytes, params: Sha384Params & { encoding: TextEncoding }, options?: RunOptions): Promise<string>
  sha384(data: Bytes, params?: Sha384Params & { encoding?: 'bytes' | undefined }, options?: RunOptions): Promise<Uint8Array>
  sha384(data: Bytes, params: Sha384Params, options?: RunOptions): Promise<Encoded>
  /** Computes the SHA-512/256 digest (FIPS 180-4) of its input: 32 bytes. */
  sha512256(data: Bytes, params: Sha512256Params & { encoding: TextEncoding }, options?: RunOptions): Promise<string>
  sha512256(data: Bytes, params?: Sha512256Params & { encoding?: 'bytes' | undefined }, options?: RunOptions): Promise<Uint8Array>
  sha512256(data: Bytes, params: Sha512256Params, options?: RunOptions): Promise<Encoded>
  /** Computes the BLAKE3 hash of its input, plain, keyed or as a key derivation; large inputs are split over idle workers. */
  blake3(data: Bytes, params: Blake3Params & { encoding: TextEncoding }, options?: RunOptions): Promise<string>
  blake3(data: Bytes, params?: Blake3Params & { encoding?: 'bytes' | undefined }, options?: RunOptions): Promise<Uint8Array>
  blake3(data: Bytes, params: Blake3Params, options?: RunOptions): Promise<Encoded>
  /** Computes the XXH3 hash of its input, for tables and change detection, not against an adversary. The bytes are the canonical, big-endian form that `xxhsum` prints. */
  xxh3(data: Bytes, params: Xxh3Params & { encoding: TextEncoding }, options?: RunOptions): Promise<string>
  xxh3(data: Bytes, params?: Xxh3Params & { encoding?: 'bytes' | undefined }, options?: RunOptions): Promise<Uint8Array>
  xxh3(data: Bytes, params: Xxh3Params, options?: RunOptions): Promise<Encoded>
  /** Computes the CRC-32 (ISO 3309, as in gzip and PNG) of its input, from 0 to 4294967295; large inputs are split over idle workers. */
  crc32(data: Bytes, params?: Crc32Params, options?: RunOptions): Promise<number>
  /** Compresses to one gzip member (RFC 1952) without name or time; inputs of 512 KiB and more are split over idle workers, which adds some 0.1 % of size. */
  gzip(data: Bytes, params?: GzipParams, options?: RunOptions): Promise<Uint8Array>
  /** Decompresses gzip (RFC 1952): all members, checksums verified; zero bytes after the last member are padding. */
  gunzip(data: Bytes, params?: GunzipParams, options?: RunOptions): Promise<Uint8Array>
  /** Compresses to raw deflate (RFC 1951), without header or checksum; inputs of 512 KiB and more are split over idle workers, which adds some 0.1 % of size. */
  deflate(data: Bytes, params?: DeflateParams, options?: RunOptions): Promise<Uint8Array>
  /** Decompresses raw deflate (RFC 1951). */
  inflate(data: Bytes, params?: InflateParams, options?: RunOptions): Promise<Uint8Array>
  /** Compresses to the zlib format (RFC 1950): deflate with a checksum. */
  zlib(data: Bytes, params?: ZlibParams, options?: RunOptions): Promise<Uint8Array>
  /** Decompresses the zlib format (RFC 1950), checksum verified. */
  unzlib(data: Bytes, params?: UnzlibParams, options?: RunOptions): Promise<Uint8Array>
  /** Compresses to one Zstandard frame (RFC 8878) that states its content size. */
  zstd(data: Bytes, params?: ZstdParams, options?: RunOptions): Promise<Uint8Array>
  /** Decompresses Zstandard (RFC 8878): all frames, checksums verified, skippable frames skipped. */
  unzstd(data: Bytes, params?: UnzstdParams, options?: RunOptions): Promise<Uint8Array>
  /** Compresses to brotli (RFC 7932). */
  brotli(data: Bytes, params?: BrotliParams, options?: RunOptions): Promise<Uint8Array>
  /** Decompresses brotli (RFC 7932). */
  unbrotli(data: Bytes, params?: UnbrotliParams, options?: RunOptions): Promise<Uint8Array>
  /** Compresses to one LZ4 frame that states its content size. */
  lz4(data: Bytes, params?: Lz4Params, options?: RunOptions): Promise<Uint8Array>
  /** Decompresses LZ4 frames: all of them, checksums verified, skippable frames skipped. */
  unlz4(data: Bytes, params?: Unlz4Params, options?: RunOptions): Promise<Uint8Array>
  password: {
    /**
     * Hashes a password with a random salt into a string that holds everything needed to verify it: PHC form, bcrypt in modular crypt form.
     *
     * It does not see cancellation while it runs.
     */
    hash(data: Bytes, params?: PasswordHashParams, options?: RunOptions): Promise<string>
    /**
     * Tells whether a password belongs to a hash string of argon2, scrypt, bcrypt or PBKDF2, in constant time; a string that asks for absurd work or memory is `TooLarge`, a malformed one `Invalid`. So is a password that bcrypt would read only in part, over 72 bytes or with a zero byte, as in password.hash: for a hash that another library made of its first 72 bytes, cut it before the call.
     *
     * It does not see cancellation while it runs.
     */
    verify(data: Bytes, params: PasswordVerifyParams, options?: RunOptions): Promise<boolean>
    /**
     * Derives key bytes from a password and a salt.
     *
     * It does not see cancellation while it runs.
     */
    derive(data: Bytes, params: PasswordDeriveParams, options?: RunOptions): Promise<Uint8Array>
  }
  image: {
    /** Reads format, stored size, colour, alpha, bits per sample, EXIF orientation, animation and progressive coding from the headers, without decoding. */
    probe(data: Bytes, params?: Record<string, never>, options?: RunOptions): Promise<{ format: 'jpeg' | 'png' | 'webp' | 'gif' | 'bmp'; width: number; height: number; color: 'gray' | 'rgb' | 'indexed' | 'cmyk'; alpha: boolean; bits: number; orientation: number; animated: boolean; progressive: boolean }>
    /**
     * Makes a small picture, decoding a jpeg at a reduced scale of at least twice the size; never enlarges.
     *
     * It does not see cancellation while it decodes a lossy WebP, encodes a WebP, or finishes a progressive JPEG that is decoded whole.
     */
    thumbnail(data: Bytes, params?: ImageThumbnailParams, options?: RunOptions): Promise<Uint8Array>
    /**
     * Makes a picture of another size, decoding a jpeg at a reduced scale of at least twice the size where that is enough.
     *
     * It does not see cancellation while it decodes a lossy WebP, encodes a WebP, or finishes a progressive JPEG that is decoded whole.
     */
    resize(data: Bytes, params?: ImageResizeParams, options?: RunOptions): Promise<Uint8Array>
    /**
     * Writes a picture in another format, or again in its own without its metadata.
     *
     * It does not see cancellation while it decodes a lossy WebP, encodes a WebP, or finishes a progressive JPEG that is decoded whole.
     */
    convert(data: Bytes, params?: ImageConvertParams, options?: RunOptions): Promise<Uint8Array>
  }
  json: {
    /** Checks that the input is one JSON text as RFC 8259 defines it, in UTF-8, and returns true. Otherwise it raises Corrupt with the byte offset, line and column, or, with `fail: false`, returns false. Numbers may have any size; nothing is built. */
    validate(data: Bytes, params?: JsonValidateParams, options?: RunOptions): Promise<boolean>
    /** Removes the white space between tokens. Strings and numbers keep their bytes, member order and duplicates stay. The input is checked as by json.validate. */
    minify(data: Bytes, params?: JsonMinifyParams, options?: RunOptions): Promise<Uint8Array>
    /** Writes one member or element per line, indented, as JSON.stringify and json.dumps do; empty objects and arrays stay on one line. Strings and numbers keep their bytes. The input is checked as by json.validate. */
    format(data: Bytes, params?: JsonFormatParams, options?: RunOptions): Promise<Uint8Array>
    /** Finds the values that JSON Pointers (RFC 6901) name, all in one pass without building a tree, and returns the JSON text of each in the order of the pointers, nil where there is none. Of members with one name the last counts. The whole input is checked. */
    pointer(data: Bytes, params: JsonPointerParams, options?: RunOptions): Promise<(Uint8Array | null)[]>
    /** Runs a JSONPath query (RFC 9535, with its functions length, count, match, search and value) and returns a JSON array of what it selects; values keep their bytes. The input is checked and at most 1 GiB; up to 16 bytes of memory per value are used on the way. */
    query(data: Bytes, params: JsonQueryParams, options?: RunOptions): Promise<Uint8Array>
    /** Keeps the lines of NDJSON (one JSON text per line) for which a JSONPath filter expression holds, and optionally cuts each down to the values that JSON Pointers name. Lines keep their order and end with a newline; blank lines are left out. Pieces of the input are worked on in parallel. */
    filterLines(data: Bytes, params?: JsonFilterLinesParams, options?: RunOptions): Promise<Uint8Array>
  }
  csv: {
    /** Converts CSV (RFC 4180, UTF-8 with or without a byte order mark, lines ending with LF, CRLF or CR, blank lines left out) to Arrow IPC. Types are inferred from all rows: bool (true, True, TRUE, false, False, FALSE; other cases are text), int64, float64, date (2024-02-29), timestamp (2024-02-29T12:30, seconds and fraction optional, with the unit its digits need, in UTC when every field has an offset), otherwise string. Numbers with leading zeros and integers beyond 64 bits stay string, so that no digit is lost. Quotes inside unquoted fields, text after a closing quote and invalid UTF-8 are Corrupt with the line. */
    toArrow(data: Bytes, params?: CsvToArrowParams, options?: RunOptions): Promise<Uint8Array>
    /** Reads CSV as csv.to_arrow does and returns its columns, with the names and types that csv.to_arrow gives them and whether nulls were seen, and the number of rows. */
    probe(data: Bytes, params?: CsvProbeParams, options?: RunOptions): Promise<{ columns: { name: string; type: string; nullable: boolean }[]; rows: number }>
    /** Groups the rows of CSV, read as by csv.to_arrow, and aggregates each group by SQL's rules: nulls are left out, a group without values gives null (count gives 0), null is a group of its own. Groups come in the order of their first row; without group_by there is one. Sums of integers are exact and TooLarge beyond 64 bits; sums of floats are compensated and do not depend on the number of threads; NaN is the greatest number. */
    aggregate(data: Bytes, params: CsvAggregateParams, options?: RunOptions): Promise<Uint8Array>
  }
}

/** What each op returns, by name, for `pool.run`. */
export interface OpResults {
  'noop': Uint8Array
  'sha256': Encoded
  'sha512': Encoded
  'sha224': Encoded
  'sha384': Encoded
  'sha512_256': Encoded
  'blake3': Encoded
  'xxh3': Encoded
  'crc32': number
  'password.hash': string
  'password.verify': boolean
  'password.derive': Uint8Array
  'gzip': Uint8Array
  'gunzip': Uint8Array
  'deflate': Uint8Array
  'inflate': Uint8Array
  'zlib': Uint8Array
  'unzlib': Uint8Array
  'zstd': Uint8Array
  'unzstd': Uint8Array
  'brotli': Uint8Array
  'unbrotli': Uint8Array
  'lz4': Uint8Array
  'unlz4': Uint8Array
  'image.probe': { format: 'jpeg' | 'png' | 'webp' | 'gif' | 'bmp'; width: number; height: number; color: 'gray' | 'rgb' | 'indexed' | 'cmyk'; alpha: boolean; bits: number; orientation: number; animated: boolean; progressive: boolean }
  'image.thumbnail': Uint8Array
  'image.resize': Uint8Array
  'image.convert': Uint8Array
  'json.validate': boolean
  'json.minify': Uint8Array
  'json.format': Uint8Array
  'json.pointer': (Uint8Array | null)[]
  'json.query': Uint8Array
  'json.filter_lines': Uint8Array
  'csv.to_arrow': Uint8Array
  'csv.probe': { columns: { name: string; type: string; nullable: boolean }[]; rows: number }
  'csv.aggregate': Uint8Array
}

/** Options of each op, by name, for `pool.run`. */
export interface OpParams {
  'noop': NoopParams
  'sha256': Sha256Params
  'sha512': Sha512Params
  'sha224': Sha224Params
  'sha384': Sha384Params
  'sha512_256': Sha512256Params
  'blake3': Blake3Params
  'xxh3': Xxh3Params
  'crc32': Crc32Params
  'password.hash': PasswordHashParams
  'password.verify': PasswordVerifyParams
  'password.derive': PasswordDeriveParams
  'gzip': GzipParams
  'gunzip': GunzipParams
  'deflate': DeflateParams
  'inflate': InflateParams
  'zlib': ZlibParams
  'unzlib': UnzlibParams
  'zstd': ZstdParams
  'unzstd': UnzstdParams
  'brotli': BrotliParams
  'unbrotli': UnbrotliParams
  'lz4': Lz4Params
  'unlz4': Unlz4Params
  'image.probe': Record<string, never>
  'image.thumbnail': ImageThumbnailParams
  'image.resize': ImageResizeParams
  'image.convert': ImageConvertParams
  'json.validate': JsonValidateParams
  'json.minify': JsonMinifyParams
  'json.format': JsonFormatParams
  'json.pointer': JsonPointerParams
  'json.query': JsonQueryParams
  'json.filter_lines': JsonFilterLinesParams
  'csv.to_arrow': CsvToArrowParams
  'csv.probe': CsvProbeParams
  'csv.aggregate': CsvAggregateParams
}
