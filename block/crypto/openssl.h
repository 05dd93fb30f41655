// OpenSSL's libcrypto, loaded on first use: its relocation alone costs more than the rest of a
// short program's start.
//
// Threads: any. Errors: ENOENT, naming the library and its package, where it is not installed.
#pragma once

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "block/base/error.h"

namespace platter::crypto {

// The functions used here, by their names in the library (openssl/crypto.h, evp.h, rand.h).
struct OpenSsl {
  decltype(&::OPENSSL_init_crypto) OPENSSL_init_crypto = nullptr;
  decltype(&::CRYPTO_memcmp) CRYPTO_memcmp = nullptr;
  decltype(&::EVP_CIPHER_fetch) EVP_CIPHER_fetch = nullptr;
  decltype(&::EVP_CIPHER_free) EVP_CIPHER_free = nullptr;
  decltype(&::EVP_CIPHER_get_key_length) EVP_CIPHER_get_key_length = nullptr;
  decltype(&::EVP_CIPHER_CTX_new) EVP_CIPHER_CTX_new = nullptr;
  decltype(&::EVP_CIPHER_CTX_free) EVP_CIPHER_CTX_free = nullptr;
  decltype(&::EVP_CIPHER_CTX_set_padding) EVP_CIPHER_CTX_set_padding = nullptr;
  decltype(&::EVP_CipherInit_ex2) EVP_CipherInit_ex2 = nullptr;
  decltype(&::EVP_CipherUpdate) EVP_CipherUpdate = nullptr;
  decltype(&::EVP_MD_fetch) EVP_MD_fetch = nullptr;
  decltype(&::EVP_MD_free) EVP_MD_free = nullptr;
  decltype(&::EVP_MD_get_size) EVP_MD_get_size = nullptr;
  decltype(&::EVP_MD_CTX_new) EVP_MD_CTX_new = nullptr;
  decltype(&::EVP_MD_CTX_free) EVP_MD_CTX_free = nullptr;
  decltype(&::EVP_DigestInit_ex) EVP_DigestInit_ex = nullptr;
  decltype(&::EVP_DigestUpdate) EVP_DigestUpdate = nullptr;
  decltype(&::EVP_DigestFinal_ex) EVP_DigestFinal_ex = nullptr;
  decltype(&::PKCS5_PBKDF2_HMAC) PKCS5_PBKDF2_HMAC = nullptr;
  decltype(&::RAND_bytes) RAND_bytes = nullptr;
};

// Never null; lives as long as the process.
Result<const OpenSsl*> openssl();

}  // namespace platter::crypto
