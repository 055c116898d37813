"""Words that a name in an app or in an artifact must not be, and those that artifacts have for themselves."""

# a package's own entry, before an input's name: how pixels are prepared, as `--image` takes it
PICTURE = "cidermill.image."

# https://docs.swift.org/swift-book/documentation/the-swift-programming-language/lexicalstructure/#Keywords-and-Punctuation
SWIFT_RESERVED = frozenset(
    """
        associatedtype class deinit enum extension fileprivate func import init inout internal let open
        operator private precedencegroup protocol public rethrows static struct subscript typealias var break
        case catch continue default defer do else fallthrough for guard if in repeat return throw switch where
        while Any as await false is nil self Self super throws true try
    """.split()
)
SWIFT_CONTEXTUAL = frozenset(  # reserved in some places only
    """
        Type Protocol async actor some any each macro package consuming borrowing nonisolated isolated
        indirect lazy mutating
    """.split()
)
# coremltools 9.0 gives values of these names others ("state_workaround"; NameSanitizer.sanitize_name)
MIL_RESERVED = frozenset(
    """
        any bool program func tensor list dict tuple true false string bf16 fp16 fp32 fp64 int8 int16 int32
        int64 uint8 uint16 uint32 uint64 state
    """.split()
)
