//! What SPIFFE demands of one certificate, leaf or signing (X509-SVID sections 2 to 5).
