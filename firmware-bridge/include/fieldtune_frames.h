/* Frames of docs/firmware-protocol.md, version 1, for firmware in C (C11, GCC or Clang, little-endian).
 *
 * A frame is a header, a payload and CRC-32C; on a serial line it lies stuffed between two zero bytes. The drive-state
 * machine behind the frames is in that document and is not here. fieldtune_frames.txt beside this file holds one
 * golden frame of every kind; a test compiles this header and compares.
 */
#ifndef FIELDTUNE_FRAMES_H
#define FIELDTUNE_FRAMES_H

#include <stddef.h>
#include <stdint.h>

enum {
    FT_VERSION = 1,
    FT_MAX_PAYLOAD = 232,
    FT_MAX_FRAME = 12 + FT_MAX_PAYLOAD + 4,
    FT_MAX_WIRE = FT_MAX_FRAME + 3,
    FT_MAX_ACTION = 24,
    FT_MAX_OBSERVATION = 48,
    FT_MAX_STATE_VALUES = 49
};

enum ft_kind {
    FT_HELLO = 0x01,        /* host */
    FT_HELLO_ACK = 0x02,    /* robot */
    FT_COMMAND = 0x10,      /* host */
    FT_STATE = 0x11,        /* robot */
    FT_HEARTBEAT = 0x12,    /* robot */
    FT_TIME_REQUEST = 0x20, /* host */
    FT_TIME_REPLY = 0x21,   /* robot */
    FT_ESTOP = 0x30,        /* host, no payload */
    FT_ARM = 0x31,          /* host */
    FT_FAULT_RESET = 0x32,  /* host, no payload */
    FT_RESET = 0x33,        /* host */
    FT_DISARM = 0x34        /* host, no payload */
};

enum ft_drive { FT_DISARMED = 0, FT_ARMED = 1, FT_RUN = 2, FT_HOLD = 3, FT_FAULT = 4 };
enum ft_task { FT_TERMINATED = 1, FT_REWARD_VALID = 2 };
enum ft_fault_bit { FT_FAULT_WATCHDOG = 1, FT_FAULT_ESTOP = 2 };

#define FT_PACKED __attribute__((packed))

struct FT_PACKED ft_header {
    uint8_t version, kind, flags, len;
    uint16_t seq, ack;
    uint32_t t_us;
};
struct FT_PACKED ft_hello {
    uint64_t schema_hash;
    uint32_t session;
};
struct FT_PACKED ft_hello_ack {
    uint64_t schema_hash;
    uint32_t firmware, boot_id, control_period_us;
    uint16_t watchdog_ms;
    uint8_t n_observation, n_action, drive;
};
struct FT_PACKED ft_command { /* n floats follow */
    uint32_t session;
    uint8_t valid_ms, n;
    uint16_t reserved;
};
struct FT_PACKED ft_state { /* n_applied, then n_observation floats follow */
    uint32_t tick, episode;
    uint8_t drive, task;
    uint16_t faults;
    float reward;
    uint16_t crc_errors, sequence_gaps, late_commands, rejected_commands;
    uint8_t n_applied, n_observation;
    uint16_t overruns;
};
struct FT_PACKED ft_heartbeat {
    uint32_t boot_id;
    uint8_t drive;
};
struct FT_PACKED ft_time_request {
    uint64_t t1_us;
};
struct FT_PACKED ft_time_reply {
    uint64_t t1_us, t2_us, t3_us;
};
struct FT_PACKED ft_arm {
    uint32_t session;
};
struct FT_PACKED ft_reset {
    uint32_t episode;
    uint64_t seed;
};

_Static_assert(sizeof(struct ft_header) == 12, "header");
_Static_assert(sizeof(struct ft_hello) == 12, "HELLO");
_Static_assert(sizeof(struct ft_hello_ack) == 25, "HELLO_ACK");
_Static_assert(sizeof(struct ft_command) == 8, "COMMAND");
_Static_assert(sizeof(struct ft_state) == 28, "STATE");
_Static_assert(offsetof(struct ft_state, reward) == 12, "STATE");
_Static_assert(offsetof(struct ft_state, overruns) == 26, "STATE");
_Static_assert(sizeof(struct ft_heartbeat) == 5, "HEARTBEAT");
_Static_assert(sizeof(struct ft_time_reply) == 24, "TIME_REPLY");
_Static_assert(sizeof(struct ft_reset) == 12, "RESET");

/* CRC-32C, bit by bit; a table is faster. Of "123456789" it is 0xe3069283. */
static inline uint32_t ft_crc32c(const uint8_t *bytes, size_t len)
{
    uint32_t crc = 0xffffffffu;
    while (len-- > 0) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1u) ? 0x82f63b78u : 0u);
    }
    return ~crc;
}

/* Whether the len bytes are one frame of this version with a right checksum. Look at kind and payload afterwards. */
static inline int ft_is_frame(const uint8_t *bytes, size_t len)
{
    if (len < 16 || len > FT_MAX_FRAME || bytes[0] != FT_VERSION || (size_t)bytes[3] + 16 != len)
        return 0;
    const uint8_t *end = bytes + len - 4;
    uint32_t crc = (uint32_t)end[0] | (uint32_t)end[1] << 8 | (uint32_t)end[2] << 16 | (uint32_t)end[3] << 24;
    return crc == ft_crc32c(bytes, len - 4);
}

/* Writes zero, the stuffed frame, zero; returns the length, at most FT_MAX_WIRE. */
static inline size_t ft_stuff(const uint8_t *frame, size_t len, uint8_t *wire)
{
    size_t code_at = 1, end = 2;
    wire[0] = 0;
    wire[code_at] = 1;
    for (size_t i = 0; i < len; i++) {
        if (wire[code_at] == 0xff) {
            code_at = end++;
            wire[code_at] = 1;
        }
        if (frame[i] == 0) {
            code_at = end++;
            wire[code_at] = 1;
        } else {
            wire[end++] = frame[i];
            wire[code_at]++;
        }
    }
    wire[end++] = 0;
    return end;
}

/* Undoes the stuffing of the bytes between two zeros, in place; returns the length, 0 when they are not stuffed. */
static inline size_t ft_unstuff(uint8_t *bytes, size_t len)
{
    size_t read = 0, written = 0;
    while (read < len) {
        uint8_t code = bytes[read++];
        if (code == 0 || read + code - 1 > len)
            return 0;
        for (int i = 1; i < code; i++)
            bytes[written++] = bytes[read++];
        if (code != 0xff && read < len)
            bytes[written++] = 0;
    }
    return written;
}

#endif
