"""The file formats of records, as TFDS names them."""

RECORD_FORMATS = ("tfrecord", "array_record")
